"""Answering speed of many users in one batch: this engine against other ways to serve the same adapters.

    python benchmarks/infer.py --out docs/results/speed/infer [--targets all] [--users 32] [--dtype float32] [--anyway]

Every user asks one question of 100 to 200 tokens and gets 8 tokens of answer. An adapter is two of a bank's twelve
anchors (rank 8), merged exactly, and an own part of rank 4. Ways, taking turns in one process:

- `engine`: all users in one batch, the bank's anchors held once.
- `peft adapter_names`: the same adapters as one PEFT adapter each (rank 20), chosen row by row in one batch; adding
  them to the model is not counted and reported apart.
- `merge per user`: each user's adapter added to the weights, her question answered alone, the weights restored.
- `base`: the bare base model on the same batch: the floor.

Before any time is reported, the answers of all ways are compared; in bfloat16, where rounding may turn a greedy choice,
most of them must agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch

from measuring import machine, ratio, refuse_busy, rows_of, table, take_turns, write
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE, EngineConfig
from mta.generation import Request, generate
from mta.lora.adapter import Adapter, AdapterSum, Factors
from mta.packing import TokenRow, left_pad
from mta.runtime import keep_freed_memory

NEW_TOKENS = 8
ANCHORS, ANCHOR_RANK, OWN_RANK = 12, 8, 4
TARGETS = {"all": ALL_LINEAR, "qv": QUERY_VALUE}
ENGINE, NAMES, MERGE, BASE = "engine", "peft adapter_names", "merge per user", "base"


def make_requests(base: BaseModel, users: int, targets: Sequence[str]) -> list[Request]:
    """Draw questions and adapters."""
    generator = torch.Generator().manual_seed(0)
    shapes = base.shapes(targets)

    def adapter(rank: int) -> Adapter:
        def values(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator) * 0.02

        return Adapter(
            {name: Factors(values(rank, d_in), values(d_out, rank)) for name, (d_out, d_in) in shapes.items()}
        )

    def question() -> TokenRow:
        length = int(torch.randint(100, 201, (), generator=generator))
        words = base.model.config.vocab_size
        return TokenRow(tuple(torch.randint(words // 2, words, (length,), generator=generator).tolist()), ())

    bank = [adapter(ANCHOR_RANK) for _ in range(ANCHORS)]
    nearest = [torch.randperm(ANCHORS, generator=generator)[:2].tolist() for _ in range(users)]
    return [
        Request(question(), AdapterSum(((0.6, bank[one]), (0.4, bank[two]), (1.0, adapter(OWN_RANK)))))
        for one, two in nearest
    ]


def complete(base: BaseModel, model: Any, rows: Sequence[TokenRow], **others: Any) -> list[str]:
    """Answer a batch with the generate of transformers."""
    batch = left_pad([row.prompt for row in rows], pad_id=base.pad_id, device=base.device)
    with torch.no_grad():
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=base.pad_id,
            **others,
        )
    return [base.tokens.decode(ids) for ids in output[:, batch.input_ids.shape[1] :].tolist()]


def merge_per_user(base: BaseModel, requests: Sequence[Request]) -> list[str]:
    """Answer each user alone, with the adapter in the weights."""
    answers = []
    for request in requests:
        deltas = whole(request)
        weights = {name: base.model.get_submodule(name).weight for name in deltas.modules}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data += deltas.delta(name).to(weight)
        answers += complete(base, base.model, [request.row])
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    return answers


def whole(request: Request) -> Adapter:
    """Return a request's adapter as one."""
    if not isinstance(request.adapter, AdapterSum):
        raise TypeError(f"got {type(request.adapter).__name__}, wanted AdapterSum")
    return request.adapter.whole()


def add_to_peft(base: BaseModel, requests: Sequence[Request], targets: Sequence[str]) -> tuple[Any, list[str]]:
    """Add every user's adapter to a model; return it and the adapters' names in the order of requests."""
    rank = 2 * ANCHOR_RANK + OWN_RANK
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
    names = [f"user{number}" for number in range(len(requests))]
    model = peft.get_peft_model(base.model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    for name, request in zip(names, requests, strict=True):
        for module, factors in whole(request).modules.items():
            layers[module].lora_A[name].weight.data.copy_(factors.A)
            layers[module].lora_B[name].weight.data.copy_(factors.B)
    return model.to(base.dtype).eval(), names


def require_agreement(answers: Mapping[str, list[str]], *, share: float) -> None:
    """Refuse to report times of different work."""
    for way in (NAMES, MERGE):
        same = sum(one == two for one, two in zip(answers[ENGINE], answers[way], strict=True))
        if same < share * len(answers[way]):
            raise SystemExit(f"{way} and the engine agree on {same} of {len(answers[way])} answers; not comparable")


def measure(base: BaseModel, peft_base: BaseModel, users: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways of answering one batch."""
    targets = TARGETS[options.targets]
    requests = make_requests(base, users, targets)
    engine = EngineConfig(predict_tokens_per_batch=10**6)  # one batch, as all ways get
    started = time.perf_counter()
    model, names = add_to_peft(peft_base, requests, targets)
    adding = time.perf_counter() - started
    answers: dict[str, list[str]] = {}

    def keep(name: str, work: Callable[[], list[str]]) -> None:
        answers[name] = work()

    answer = partial(generate, base, max_new_tokens=NEW_TOKENS, engine=engine)
    ways: dict[str, Callable[[], list[str]]] = {
        ENGINE: lambda: answer(requests),
        NAMES: lambda: complete(peft_base, model, [request.row for request in requests], adapter_names=names),
        MERGE: lambda: merge_per_user(base, requests),
        BASE: lambda: answer([Request(request.row) for request in requests]),
    }
    times = take_turns({name: partial(keep, name, work) for name, work in ways.items()}, repeats=options.repeats)
    model.unload()
    require_agreement(answers, share=1.0 if base.dtype == torch.float32 else 0.5)
    return {
        "users": users,
        "rows": rows_of(times, units=users, unit="queries"),
        "ratios": {
            "base / engine": ratio(times, BASE, ENGINE),
            **{f"engine vs {way}": ratio(times, way, ENGINE) for way in (NAMES, MERGE)},
        },
        "adding adapters to peft, s": round(adding, 2),
    }


def page_of(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return all batch sizes as Markdown."""
    head = ["users in the batch", *(f"{way}, queries/s" for way in (ENGINE, NAMES, MERGE, BASE))]
    head += ["engine of base", "engine vs adapter_names", "engine vs merge per user"]
    rows = [
        [
            one["users"],
            *(one["rows"][way]["queries_per_s"] for way in (ENGINE, NAMES, MERGE, BASE)),
            *(one["ratios"][key] for key in ("base / engine", f"engine vs {NAMES}", f"engine vs {MERGE}")),
        ]
        for one in found
    ]
    layers = "all linear layers" if options.targets == "all" else "q and v"
    return f"### {options.base}, {options.dtype}, {layers}\n\n{table(head, rows)}"


def main() -> None:
    """Measure all batch sizes and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--targets", choices=list(TARGETS), default="all")
    parser.add_argument("--users", type=int, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder; the file is called after targets and dtype")
    options = parser.parse_args()
    refuse_busy(anyway=options.anyway)
    keep_freed_memory()
    base, peft_base = (load_base_model(options.base, dtype=options.dtype) for _ in range(2))
    for each in (base, peft_base):
        each.model.generation_config.eos_token_id = [each.model.config.vocab_size]  # none: all ways make all steps
    before = machine()
    found = [measure(base, peft_base, users, options) for users in options.users or (1, 4, 16, 32, 64)]
    out = options.out / f"{options.targets}-{options.dtype}.json" if options.out else None
    write(out, {"set_up": {"base": options.base}, "batches": found, "machine": before}, page_of(found, options))


if __name__ == "__main__":
    main()
