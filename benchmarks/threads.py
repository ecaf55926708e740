"""Measure whether a busy neighbour makes two compute threads slower than one, and what a shorter spin does.

    python benchmarks/threads.py --out docs/results/speed [--base smollm2-135m] [--repeats 5]

Each setting trains the same two small jobs, in float32, in a process of its own, twice; the second time counts.
Settings take turns. "busy" runs beside a process that loops without end. The command line sets `GOMP_SPINCOUNT` to
1,000 unless the environment does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from measuring import table, tell, watched, write

SETTINGS = (("1", None), ("2", None), ("2", "1000"), ("2", "10000"), ("2", "50000"))


def child(base_name: str, threads: int) -> None:
    """Train and print the seconds of the second call."""
    import torch

    from mta.base_model import load_base_model
    from mta.config import EngineConfig, TrainConfig
    from mta.packing import TokenRow
    from mta.training import train
    from mta.training_plan import TrainJob

    torch.set_num_threads(threads)
    base = load_base_model(base_name)
    prompts = torch.randint(3, 250, (8, 150), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [TokenRow(tuple(prompt), (5, 6, 7, 2)) for prompt in prompts]
    config = TrainConfig(batch_size=4, epochs=1)
    jobs = [TrainJob(str(job), tuple(rows[4 * job : 4 * job + 4]), config) for job in range(2)]
    for _ in range(2):
        started = time.perf_counter()
        list(train(base, jobs, engine=EngineConfig()))
        seconds = time.perf_counter() - started
    print(f"{seconds:.3f}")


def measure(base_name: str, threads: str, spin: str | None) -> float:
    """Run one setting in a fresh process and return its seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if spin:
        environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, __file__, "--base", base_name, "--child", threads]
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def take(base_name: str, repeats: int, what: str) -> dict[str, list[float]]:
    """Run all settings in turn, as often as asked for."""
    found: dict[str, list[float]] = {name_of(*setting): [] for setting in SETTINGS}
    for _ in range(repeats):
        for setting in SETTINGS:
            found[name_of(*setting)].append(measure(base_name, *setting))
            tell(f"{what}: {name_of(*setting)}: {found[name_of(*setting)][-1]:.2f} s")
    return found


def name_of(threads: str, spin: str | None) -> str:
    """Return what a setting is called."""
    return f"{threads} {'thread' if threads == '1' else 'threads'}, spin count {spin or 'of the library'}"


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep a processor busy inside the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def both(base_name: str, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Run all settings alone and beside a busy process."""
    idle = take(base_name, repeats, "idle")
    with neighbour():
        return {"idle": idle, "busy": take(base_name, repeats, "busy")}


def page_of(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the seconds as Markdown."""
    rows = [[name, *(spread(found[when][name]) for when in ("idle", "busy"))] for name in found["idle"]]
    return f"### Threads and a busy neighbour\n\n{table(['', 'idle, s', 'beside a busy process, s'], rows)}"


def spread(seconds: Sequence[float]) -> str:
    """Return median and extremes."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.base, options.child)
        return
    found, where = watched(partial(both, options.base, options.repeats), anyway=options.anyway)
    write(options.out / "threads.json" if options.out else None, {**found, "machine": where}, page_of(found))


if __name__ == "__main__":
    main()
