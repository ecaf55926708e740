"""Answering speed of many users in one batch: this engine against other ways to serve the same adapters.

    python benchmarks/infer.py --out docs/results/speed/infer [--targets all] [--users 32] [--dtype float32]
        [--new-tokens 8] [--anyway]

Every user asks one question of 100 to 200 tokens and gets 8 tokens of answer, or as many as asked for. An adapter is
two of a bank's twelve anchors (rank 8), merged exactly, and an own part of rank 4, in the model's number format as a
server holds them. Ways, taking turns in one process:

- `engine`: all users in one batch, the bank's anchors held once; `engine, nothing shared` is the same without that.
- `peft adapter_names`, `polylora` where it is installed, and `merge per user`: see `inference_peers.py`. Adding the
  adapters to their models is not counted and reported apart.
- `base`: the bare base model on the same batch, read and decoded as the engine does: the floor. Also by the
  generate of transformers, as the peers do, which tells what of the engine's lead is not the adapters'.

Before any time is reported, the answers of all ways are compared; in bfloat16, where rounding may turn a greedy choice,
most answers of all batches together must agree. Adapters are large enough that most answers are not the base model's.
Sizes of batches that are in the file already are left as they are, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drawn_rows import drawn_row
from inference_peers import PeftNames, PolyLora, complete, has_polylora, merge_per_user, whole
from measuring import ratio, rows_of, run, table, take_turns, watched, write
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE, EngineConfig
from mta.files import read_json
from mta.generation import Request, generate
from mta.lora.adapter import Adapter, AdapterSum, Factors
from mta.memory_at_hand import keep_freed_memory

ANCHORS, ANCHOR_RANK, OWN_RANK = 12, 8, 4
TARGETS = {"all": ALL_LINEAR, "qv": QUERY_VALUE}
ENGINE, UNSHARED = "engine", "engine, nothing shared"
BASE, PLAIN_BASE = "base", "base, generate of transformers"
NAMES, POLYLORA, MERGE = "peft adapter_names", "polylora", "merge per user"
SIZES = (32, 64, 16, 4, 1)
"""Users in a batch. The largest come first: answers of all batches so far are compared, and one alone may turn."""
PEERS = {NAMES: PeftNames} | ({POLYLORA: PolyLora} if has_polylora() else {})
"""Peers that have a model of their own."""


def make_requests(base: BaseModel, users: int, targets: Sequence[str]) -> list[Request]:
    """Draw questions and adapters."""
    generator = torch.Generator().manual_seed(0)
    shapes = base.shapes(targets)

    def adapter(rank: int) -> Adapter:
        """Draw one whose delta is as large as the weights, so that answers are surely others."""

        def factors(d_out: int, d_in: int) -> Factors:
            A = torch.randn(rank, d_in, generator=generator) / (rank * d_in) ** 0.5
            B = 2 * torch.randn(d_out, rank, generator=generator)
            return Factors(A.to(base.dtype), B.to(base.dtype))

        return Adapter({name: factors(*shape) for name, shape in shapes.items()})

    question = partial(drawn_row, generator, words=base.model.config.vocab_size, lengths=(100, 200), answer=())
    bank = [adapter(ANCHOR_RANK) for _ in range(ANCHORS)]
    nearest = [torch.randperm(ANCHORS, generator=generator)[:2].tolist() for _ in range(users)]
    return [
        Request(question(), AdapterSum(((0.6, bank[one]), (0.4, bank[two]), (1.0, adapter(OWN_RANK)))))
        for one, two in nearest
    ]


def agreements(answers: Mapping[str, list[str]]) -> dict[str, int]:
    """Return how many answers of each way are those of the engine."""
    return {way: sum(map(str.__eq__, answers[ENGINE], found)) for way, found in answers.items()}


def require_agreement(batches: Sequence[Mapping[str, Any]], *, share: float) -> None:
    """Refuse to report times of different work, or of adapters that do nothing, by the answers of all batches."""
    asked = sum(batch["users"] for batch in batches)
    for way in batches[0]["same answers"]:
        same = sum(batch["same answers"][way] for batch in batches)
        bare = way in (BASE, PLAIN_BASE)
        if bare and 2 * same > asked:
            raise SystemExit(f"{same} of {asked} answers are those of the bare base model; larger adapters are needed")
        if not bare and same < share * asked:
            raise SystemExit(f"{way} and the engine agree on {same} of {asked} answers; not comparable")


def measure(
    base: BaseModel, peer_bases: Sequence[BaseModel], users: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Time all ways of answering one batch."""
    targets = TARGETS[options.targets]
    requests = make_requests(base, users, targets)
    engine = EngineConfig(predict_tokens_per_batch=10**6)  # one batch, as all ways get
    peers, adding = {}, {}
    for (name, make), peer_base in zip(PEERS.items(), peer_bases, strict=True):
        started = time.perf_counter()
        peers[name] = make(peer_base, requests, targets)
        adding[name] = round(time.perf_counter() - started, 2)
    answers: dict[str, list[str]] = {}

    def keep(name: str, work: Callable[[], list[str]]) -> None:
        answers[name] = work()

    answer = partial(generate, base, max_new_tokens=options.new_tokens, engine=engine)
    ways: dict[str, Callable[[], list[str]]] = {
        ENGINE: partial(answer, requests),
        **{name: partial(peer, options.new_tokens) for name, peer in peers.items()},
        UNSHARED: partial(answer, [replace(request, adapter=whole(request)) for request in requests]),
        MERGE: partial(merge_per_user, base, requests, options.new_tokens),
        BASE: partial(answer, [Request(request.row) for request in requests]),
        PLAIN_BASE: partial(complete, base, base.model, [request.row for request in requests], options.new_tokens),
    }
    times = take_turns(
        {name: partial(keep, name, work) for name, work in ways.items()}, repeats=options.repeats, anyway=options.anyway
    )
    for peer in peers.values():
        peer.close()
    return {
        "users": users,
        "moved within a turn, %": times.moved,
        "turns": times.record(),
        "rows": rows_of(times, units=users, unit="queries"),
        "ratios": {
            "base / engine": ratio(times, BASE, ENGINE),
            f"{PLAIN_BASE} / engine": ratio(times, PLAIN_BASE, ENGINE),
            **{f"engine vs {way}": ratio(times, way, ENGINE) for way in (*peers, MERGE, UNSHARED)},
        },
        "same answers": agreements(answers),
        "adding adapters, s": adding,
    }


def page_of(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return all batch sizes as Markdown."""
    ways, ratios = list(found[0]["rows"]), list(found[0]["ratios"])
    head = ["users in the batch", *(f"{way}, queries/s" for way in ways), *ratios, "speed moved in a turn, %"]
    rows = [
        [
            one["users"],
            *(_with_extremes(one["users"], one["rows"][way]) for way in ways),
            *(one["ratios"][key] for key in ratios),
            one["moved within a turn, %"],
        ]
        for one in found
    ]
    layers = "all linear layers" if options.targets == "all" else "q and v"
    title = f"### {options.base}, {options.dtype}, {layers}, {options.new_tokens} tokens of answer"
    return f"{title}\n\n{table(head, rows)}"


def _with_extremes(users: int, row: Mapping[str, float]) -> str:
    """Return queries a second, with the slowest and the fastest turn."""
    return f"{row['queries_per_s']} ({users / row['max_s']:.2f} - {users / row['min_s']:.2f})"


def main() -> None:
    """Measure all batch sizes and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--targets", choices=list(TARGETS), default="all")
    parser.add_argument("--new-tokens", type=int, default=8, help="of each answer")
    parser.add_argument("--users", type=int, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder; the file is called after targets, dtype and tokens")
    options = parser.parse_args()
    keep_freed_memory()
    base, *peer_bases = (load_base_model(options.base, dtype=options.dtype) for _ in range(1 + len(PEERS)))
    for each in (base, *peer_bases):
        each.model.generation_config.eos_token_id = [each.model.config.vocab_size]  # none: all ways make all steps

    out = options.out / f"{options.targets}-{options.dtype}-{options.new_tokens}.json" if options.out else None
    found: list[dict[str, Any]] = read_json(out)["batches"] if out and out.exists() else []
    for users in options.users or SIZES:
        if any(batch["users"] == users for batch in found):
            continue
        work = partial(measure, base, peer_bases, users, options)
        batch, where = watched(work, anyway=options.anyway)
        found = sorted([*found, {**batch, "machine": where}], key=lambda one: int(one["users"]))
        require_agreement(found, share=1.0 if base.dtype == torch.float32 else 0.5)
        set_up = {"base": options.base, "new tokens": options.new_tokens}
        write(out, {"set_up": set_up, "batches": found, "machine": where}, page_of(found, options))


if __name__ == "__main__":
    run(main)
