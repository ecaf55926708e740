"""What each trick of training is worth: the engine as it is against itself without one of them, taking turns.

    python benchmarks/ablations.py --data DIR --out docs/results/speed/ablations [--case lamp-2-bf16] [--anyway]

The work is that of a case of `train.py`. A trick is taken out by putting something plain in its place; what is trained
stays the same, which is asserted before any time is reported. Peak memory is not measured here: `peak_memory.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from measuring import case_options, machine, ratio, refuse_busy, rows_of, table, take_turns, write
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig
from mta.packing import Pack, pack_rows
from mta.rms_norm import lean_norms
from mta.row_attention import rows_apart, segments
from mta.runtime import keep_freed_memory
from train import CASES, make_jobs, require_equal, run_engine
from training_peers import Losses, trained_tokens

ENGINE = "engine"
SLOTS, TOKENS = 8, EngineConfig().tokens_per_batch


def all_logits(base: BaseModel, pack: Pack) -> Tensor:
    """Do what `answer_nll` does, with the head run for every position."""
    with rows_apart(base.model), lean_norms(base.model):
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


WITHOUT: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    ENGINE: nullcontext,
    "without shared beginnings": partial(patch, "mta.training.pack_rows", _apart),
    "with logits of all positions": partial(patch, "mta.training.answer_nll", all_logits),
    "without attention in blocks": partial(patch, "mta.row_attention.faster_in_blocks", lambda query, key: False),
    "without own norms": partial(patch, "mta.forward.lean_norms", lambda model: nullcontext()),
    "without handing memory back": partial(patch, "mta.training.hand_back_memory", lambda: None),
}
"""What is taken out -> how."""
ENGINES: Mapping[str, EngineConfig] = {
    "one user at a time": EngineConfig(slots=1),
    **{
        f"{tokens} tokens in a pass": EngineConfig(slots=SLOTS, tokens_per_batch=tokens)
        for tokens in (512, 1024, 2048, 4096)
        if tokens != TOKENS
    },
}
"""Other settings of the engine."""


def measure(base: BaseModel, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time the engine in all forms."""
    jobs = make_jobs(base, CASES[name], options.data)
    losses: dict[str, Losses] = {}

    def go(way: str, engine: EngineConfig, without: Callable[[], AbstractContextManager[Any]]) -> None:
        with without():
            losses[way] = run_engine(base, jobs, engine)

    usual = EngineConfig(slots=SLOTS)
    ways = {way: partial(go, way, usual, without) for way, without in WITHOUT.items()}
    ways |= {way: partial(go, way, engine, nullcontext) for way, engine in ENGINES.items()}
    times = take_turns(ways, repeats=options.repeats)
    require_equal(losses, tolerance=1e-3 if CASES[name].dtype == "float32" else 5e-2)
    return {
        "case": name,
        "tokens_per_batch": TOKENS,
        "rows": rows_of(times, units=trained_tokens(jobs), unit="tokens"),
        "ratios": {way: ratio(times, way, ENGINE) for way in ways if way != ENGINE},
        "machine": machine(),
    }


def page_of(result: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    rows = [
        [way, row["median_s"], f"{row['min_s']} - {row['max_s']}", result["ratios"].get(way, 1.0)]
        for way, row in result["rows"].items()
    ]
    title = f"### {result['case']}: the engine ({result['tokens_per_batch']} tokens in a pass) and changes to it"
    return f"{title}\n\n{table(['', 'median s', 'min - max', 'time / engine'], rows)}"


def main() -> None:
    """Measure the cases that are asked for and write a file each."""
    parser = case_options(__doc__, CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    options = parser.parse_args()
    for name in options.case or ("lamp-2", "lamp-2-bf16"):
        out = options.out / f"{name}.json" if options.out else None
        if out and out.exists():
            continue
        refuse_busy(anyway=options.anyway)
        keep_freed_memory()
        result = measure(load_base_model(options.base, dtype=CASES[name].dtype), name, options)
        write(out, result, page_of(result))


if __name__ == "__main__":
    main()
