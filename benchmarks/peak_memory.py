"""Peak memory of training, each way in a process of its own, and what the engine was foretold to take.

    python benchmarks/peak_memory.py --data DIR --out docs/results/speed/memory [--case lamp-2] [--users 4] [--anyway]

The work is that of a case of `train.py`: the same adapters, trained by the engine, by a plain PEFT loop, by stronger
ones and by the Trainer; the engine and the plain loop, of which the ratios are, several times in turn. The process
holds libraries and weights besides; "more than at the start" is the peak less what it held when the base model was
loaded. Figures are medians. Ratios:

- what the engine takes more than at the start, over what the plain loop takes and the bytes of the engine's slots:
  not above 1 where only the adapters of several users, with gradients and moments, are held besides;
- what the engine was foretold to take (base model, slots, largest pass, holes between them), over what its process
  held at the peak beyond the libraries; and the same with the libraries, over all that the process held. One can plan
  by it from 0.8 to 1.2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from measuring import run, table, tell, watched, write
from mta.base_model import load_base_model, load_base_shape
from mta.config import EngineConfig
from mta.memory import training_memory
from mta.memory_at_hand import keep_freed_memory, peak_rss_bytes, rss_bytes
from train import (
    ENGINE,
    HEADLINE,
    PLAIN,
    STRONG,
    TRAINER,
    case_of,
    make_jobs,
    peer,
    run_engine,
    turns_options,
)

SLOTS = 8
WAYS = (ENGINE, PLAIN, *STRONG, TRAINER)
COMPARED = (ENGINE, PLAIN)
"""Ways that run several times."""
OVER_PEFT = "engine / (peft plain + slots)"
FORETOLD, PROCESS = "foretold / measured", "foretold and libraries / process"


def child(way: str, name: str, options: argparse.Namespace) -> None:
    """Train in one way and print the bytes held without the base model, with it before training, and at the peak."""
    if way == ENGINE:
        keep_freed_memory()  # as the command line does; the peers are run as people run them
    libraries = rss_bytes()
    case = case_of(name, options)
    base = load_base_model(options.base, dtype=case.dtype)
    jobs = make_jobs(base, case, options.data)
    start = rss_bytes()
    if way == ENGINE:
        run_engine(base, jobs, EngineConfig(slots=SLOTS))
    else:
        peer(base, jobs, way)
    print(json.dumps({"libraries": libraries, "start": start, "peak": peak_rss_bytes() or 0}))


def in_own_process(way: str, name: str, options: argparse.Namespace) -> dict[str, int]:
    """Train in one way in a fresh process; see `child`."""
    words = ["--child", way, "--case", name, "--base", options.base]
    for option in ("data", "dtype", "users"):
        if (value := getattr(options, option)) is not None:
            words += [f"--{option}", str(value)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    held: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    tell(f"{name}, {way}: {(held['peak'] - held['start']) / 2**30:.2f} GiB more than at the start")
    return held


def foretold(name: str, options: argparse.Namespace) -> dict[str, int]:
    """Return what the engine's parts are foretold to take."""
    case = case_of(name, options)
    shape = load_base_shape(options.base, dtype=case.dtype)
    jobs = make_jobs(shape, case, options.data)
    found = training_memory(shape, jobs, engine=EngineConfig(slots=SLOTS))
    return {"weights": found.weights, "slots": found.slots, "largest pass": found.largest_pass, "holes": found.holes}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run every way of a case."""
    ways = COMPARED if options.only_compared else WAYS
    turns: dict[str, list[dict[str, int]]] = {way: [] for way in ways}
    for turn in range(options.repeats):
        for way in ways if turn == 0 else COMPARED:
            turns[way].append(in_own_process(way, name, options))
    held = {way: medians(found) for way, found in turns.items()}
    told = foretold(name, options)
    users = case_of(name, options).users
    return {"case": name, "users": users, "turns": turns, "held": held, "foretold": told, "ratios": ratios(held, told)}


def medians(turns: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the median of each figure."""
    return {what: round(statistics.median(turn[what] for turn in turns)) for what in turns[0]}


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
    rows = []
    for way, held in result["held"].items():
        more = [turn["peak"] - turn["start"] for turn in result["turns"][way]]
        spread = f"{gib(min(more))} - {gib(max(more))}" if len(more) > 1 else ""
        rows.append([way, gib(held["peak"]), gib(held["peak"] - held["start"]), spread])
    told = ", ".join(f"{part} {gib(size)}" for part, size in result["foretold"].items())
    head = ["", "peak of the process, GiB", "more than at the start, GiB", "min - max"]
    shown = "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())
    title = f"### Memory, {result['case']}, {result['users']} users"
    return f"{title}\n\n{table(head, rows)}\n\n{shown}\n\nForetold for the engine, GiB: {told}."


def gib(size: float) -> str:
    """Return bytes in GiB."""
    return f"{size / 2**30:.2f}"


def main() -> None:
    """Measure the cases that are asked for and write a file each."""
    parser = turns_options(__doc__)
    parser.add_argument("--only-compared", action="store_true", help="leave out the ways that no ratio is of")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or [HEADLINE, "lamp-2-fp32"]
    if options.child:
        child(options.child, cases[0], options)
        return
    for name in cases:
        out = options.out / f"{name}.json" if options.out else None
        if out and out.exists():
            continue
        found, where = watched(partial(measure, name, options), anyway=options.anyway)
        write(out, {**found, "machine": where}, page_of(found))


if __name__ == "__main__":
    run(main)
