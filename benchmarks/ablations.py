"""What each trick of training is worth: the engine as it is against itself without one of them, taking turns.

    python benchmarks/ablations.py --data DIR --out docs/results/speed/ablations [--case lamp-2] [--anyway]

The work is that of a case of `train.py`. A trick is taken out by putting something plain in its place; what is trained
stays the same, which is asserted as there before any time is reported. Peak memory is not measured here, see
`peak_memory.py`; numbers of threads neither, see `threads.py`; float32 beside bfloat16 is another case.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from measuring import ratio, rows_of, run, steadiness, table, watched, write
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig
from mta.gated_product import is_gated_mlp
from mta.lean_layers import lean_layers, lean_mlp, lean_norm
from mta.memory_at_hand import keep_freed_memory
from mta.packing import Pack, pack_rows
from mta.rms_norm import is_rms_norm
from mta.row_attention import rows_apart, segments
from train import ENGINE, case_of, make_jobs, run_engine, take_trainings, turns_options
from training_peers import Adapters, trained_tokens

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of mallopt."""
SLOTS, TOKENS = 8, EngineConfig().tokens_per_batch


def all_logits(base: BaseModel, pack: Pack) -> Tensor:
    """Do what `answer_nll` does, with the head run for every position."""
    with rows_apart(base.model), lean_layers(base.model):
        logits = base.model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            use_cache=False,
            **segments(pack.lengths, pack.before, device=base.device),
        ).logits[0]
    losses = torch.nn.functional.cross_entropy(logits.float()[pack.sources], pack.targets, reduction="none")
    return losses.new_zeros(max(pack.rows) + 1).index_add(0, pack.owners, losses)


def _apart(rows: Any, *, device: Any, adapters: Any) -> Pack:
    return pack_rows(rows, device=device)


@contextmanager
def with_usual_memory() -> Iterator[None]:
    """Let the C library hand freed memory back at once, as it does unless told otherwise."""
    library = ctypes.CDLL(None)
    for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        library.mallopt(parameter, 128 << 10)
    try:
        yield
    finally:
        keep_freed_memory()


WITHOUT: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    ENGINE: nullcontext,
    "without shared beginnings": partial(patch, "mta.training.pack_rows", _apart),
    "with logits of all positions": partial(patch, "mta.training.answer_nll", all_logits),
    "without attention in blocks": partial(patch, "mta.row_attention.faster_in_blocks", lambda query, key: False),
    "layers of one input apart": partial(patch, "mta.lora.attach.SAME_INPUT", ()),
    "without own norms": partial(patch, "mta.lean_layers.LAYERS", {is_gated_mlp: lean_mlp}),
    "without own gated products": partial(patch, "mta.lean_layers.LAYERS", {is_rms_norm: lean_norm}),
    "without handing memory back": partial(patch, "mta.memory_at_hand.hand_back_memory", lambda: None),
    "handing memory back after every other pass": partial(patch, "mta.memory_at_hand.PassMemory.SLACK", 0.0),
    "without keeping freed memory": with_usual_memory,
}
"""What is taken out -> how."""
ENGINES: Mapping[str, EngineConfig] = {
    "one user at a time": EngineConfig(slots=1),
    **{
        f"{tokens} tokens in a pass": EngineConfig(slots=SLOTS, tokens_per_batch=tokens)
        for tokens in (512, 1024, 1536, 2048, 4096)
        if tokens != TOKENS
    },
}
"""Other settings of the engine."""


def measure(base: BaseModel, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time the engine in all forms."""
    case = case_of(name, options)
    jobs = make_jobs(base, case, options.data)

    def go(engine: EngineConfig, without: Callable[[], AbstractContextManager[Any]]) -> Adapters:
        with without():
            return run_engine(base, jobs, engine)

    usual = EngineConfig(slots=SLOTS)
    ways = {way: partial(go, usual, without) for way, without in WITHOUT.items()}
    ways |= {way: partial(go, engine, nullcontext) for way, engine in ENGINES.items()}
    times, equality = take_trainings(base, jobs, ways, floors={}, repeats=options.repeats, anyway=options.anyway)
    return {
        "case": name,
        "users": case.users,
        "dtype": case.dtype,
        "tokens_per_batch": TOKENS,
        "equality": equality,
        "moved within a turn, %": times.moved,
        "turns": times.record(),
        "rows": rows_of(times, units=trained_tokens(jobs), unit="tokens"),
        "ratios": {way: ratio(times, way, ENGINE) for way in ways if way != ENGINE},
    }


def page_of(result: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    rows = [
        [way, row["median_s"], f"{row['min_s']} - {row['max_s']}", result["ratios"].get(way, 1.0)]
        for way, row in result["rows"].items()
    ]
    title = (
        f"### {result['case']}, {result['users']} users, {result['dtype']}: the engine "
        f"({result['tokens_per_batch']} tokens in a pass) and changes to it"
    )
    shown = table(["", "median s", "min - max", "time / engine"], rows)
    return "\n\n".join([title, shown, steadiness(result)])


def main() -> None:
    """Measure the cases that are asked for and write a file each."""
    options = turns_options(__doc__).parse_args()
    for name in options.case or ("lamp-2", "lamp-2-fp32"):
        out = options.out / f"{name}.json" if options.out else None
        if out and out.exists():
            continue
        keep_freed_memory()
        base = load_base_model(options.base, dtype=case_of(name, options).dtype)
        result, where = watched(partial(measure, base, name, options), anyway=options.anyway)
        write(out, {**result, "machine": where}, page_of(result))


if __name__ == "__main__":
    run(main)
