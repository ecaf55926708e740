"""Peak memory of training, each way in a process of its own, and what the engine was foretold to take.

    python benchmarks/peak_memory.py --data DIR --out docs/results/speed [--case lamp-2] [--case lamp-2-fp32]

The work is that of a case of `train.py`: the same adapters, trained by the engine, by a plain PEFT loop, by stronger
ones and by the Trainer. The process holds libraries and weights besides; "more than at the start" is the peak less what
it held when the base model was loaded. Ratios:

- what the engine takes more than at the start, over what the plain loop takes and the bytes of the engine's slots:
  not above 1 where only the adapters of several users, with gradients and moments, are held besides;
- what the engine was foretold to take (base model, slots, largest pass), over what its process held at the peak beyond
  the libraries; and the same with the libraries, over all that the process held. One can plan by it from 0.8 to 1.2.
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
from train import CASES, ENGINE, HEADLINE, PLAIN, STRONG, TRAINER, make_jobs, peer, run_engine

SLOTS = 8
WAYS = (ENGINE, PLAIN, *STRONG, TRAINER)
OVER_PEFT = "engine / (peft plain + slots)"
FORETOLD, PROCESS = "foretold / measured", "foretold and libraries / process"


def child(way: str, name: str, base_name: str, data: Path | None) -> None:
    """Train in one way and print the bytes held without the base model, with it before training, and at the peak."""
    if way == ENGINE:
        keep_freed_memory()  # as the command line does; the peers are run as people run them
    libraries = rss_bytes()
    base = load_base_model(base_name, dtype=CASES[name].dtype)
    jobs = make_jobs(base, CASES[name], data)
    start = rss_bytes()
    if way == ENGINE:
        run_engine(base, jobs, EngineConfig(slots=SLOTS))
    else:
        peer(base, jobs, way)
    print(json.dumps({"libraries": libraries, "start": start, "peak": peak_rss_bytes() or 0}))


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
    told = foretold(name, options.base, options.data)
    return {"case": name, "held": held, "foretold": told, "ratios": ratios(held, told)}


def ratios(held: Mapping[str, Mapping[str, int]], told: Mapping[str, int]) -> dict[str, float]:
    """Return what the engine takes against a plain loop with the engine's slots, and against what was foretold."""
    more = {way: one["peak"] - one["start"] for way, one in held.items()}
    engine, total = held[ENGINE], sum(told.values())
    return {
        OVER_PEFT: round(more[ENGINE] / (more[PLAIN] + told["slots"]), 3),
        FORETOLD: round(total / (engine["peak"] - engine["libraries"]), 3),
        PROCESS: round((total + engine["libraries"]) / engine["peak"], 3),
    }


def page_of(result: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    rows = [
        [way, f"{held['peak'] / 2**30:.2f}", f"{(held['peak'] - held['start']) / 2**30:.2f}"]
        for way, held in result["held"].items()
    ]
    told = result["foretold"]
    parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in told.items())
    head = ["", "peak of the process, GiB", "more than at the start, GiB"]
    shown = "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())
    return f"### Memory, {result['case']}\n\n{table(head, rows)}\n\n{shown}\n\nForetold for the engine, GiB: {parts}."


def main() -> None:
    """Measure the cases and write one file."""
    parser = case_options(__doc__, CASES)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or [HEADLINE, "lamp-2-fp32"]
    if options.child:
        child(options.child, cases[0], options.base, options.data)
        return
    found = [measure(name, options) for name in cases]
    out = options.out / "peak_memory.json" if options.out else None
    write(out, {"cases": found, "machine": machine()}, "\n\n".join(map(page_of, found)))


if __name__ == "__main__":
    main()
