"""Peak memory of training, each way in a process of its own, and what the engine was foretold to take.

    python benchmarks/peak_memory.py --data DIR --out docs/results/speed [--case lamp-2] [--case lamp-2-bf16]

The work is that of a case of `train.py`: the same adapters, trained by the engine, by a plain PEFT loop, by the best
one and by the Trainer. The process holds libraries and weights besides; "more than at the start" is the peak less what
it held when the base model was loaded. A slot's bytes are those of its adapter with gradients and moments, of which
every loop over single users has one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import case_options, machine, table, write
from mta.base_model import load_base_model, load_base_shape
from mta.config import EngineConfig
from mta.memory import training_memory
from mta.runtime import keep_freed_memory, peak_rss_bytes, rss_bytes
from train import BEST, CASES, ENGINE, PLAIN, TRAINER, make_jobs, peer, run_engine

SLOTS = 8
WAYS = (ENGINE, PLAIN, BEST, TRAINER)


def child(way: str, name: str, base_name: str, data: Path | None) -> None:
    """Train in one way and print the bytes held before, and at the peak."""
    if way == ENGINE:
        keep_freed_memory()  # as the command line does; the peers are run as people run them
    base = load_base_model(base_name, dtype=CASES[name].dtype)
    jobs = make_jobs(base, CASES[name], data)
    before = rss_bytes()
    if way == ENGINE:
        run_engine(base, jobs, EngineConfig(slots=SLOTS))
    else:
        peer(base, jobs, way)
    print(json.dumps({"start": before, "peak": peak_rss_bytes() or 0}))


def foretold(name: str, base_name: str, data: Path | None) -> dict[str, int]:
    """Return what the engine's parts are foretold to take."""
    shape = load_base_shape(base_name, dtype=CASES[name].dtype)
    jobs = make_jobs(shape, CASES[name], data)
    found = training_memory(shape, jobs, engine=EngineConfig(slots=SLOTS))
    return {"weights": found.weights, "slots": found.slots, "largest pass": found.largest_pass}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run every way of a case."""
    held = {}
    for way in WAYS:
        words = ["--child", way, "--case", name, "--base", options.base]
        words += ["--data", str(options.data)] if options.data else []
        done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
        held[way] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"case": name, "held": held, "foretold": foretold(name, options.base, options.data)}


def page_of(result: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    rows = [
        [way, f"{held['peak'] / 2**30:.2f}", f"{(held['peak'] - held['start']) / 2**30:.2f}"]
        for way, held in result["held"].items()
    ]
    told = result["foretold"]
    parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in told.items())
    head = ["", "peak of the process, GiB", "more than at the start, GiB"]
    return f"### {result['case']}\n\n{table(head, rows)}\n\nForetold for the engine, GiB: {parts}."


def main() -> None:
    """Measure the cases and write one file."""
    parser = case_options(__doc__, CASES)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or ["lamp-2", "lamp-2-bf16"]
    if options.child:
        child(options.child, cases[0], options.base, options.data)
        return
    found = [measure(name, options) for name in cases]
    out = options.out / "peak_memory.json" if options.out else None
    write(out, {"cases": found, "machine": machine()}, "\n\n".join(map(page_of, found)))


if __name__ == "__main__":
    main()
