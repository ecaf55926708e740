"""Measure whether a busy neighbour makes two compute threads slower than one, and what a shorter spin does.

    python benchmarks/threads.py [--base smollm2-135m]

Each setting trains the same two small jobs in a process of its own, twice; the second time counts. "busy" runs beside a
process that loops without end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

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
    print(f"{seconds:.1f}")


def measure(base_name: str, threads: str, spin: str | None) -> str:
    """Run one setting in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if spin:
        environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, __file__, "--base", base_name, "--child", threads]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child:
        child(options.base, options.child)
        return
    idle = [measure(options.base, *setting) for setting in SETTINGS]
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = [measure(options.base, *setting) for setting in SETTINGS]
    finally:
        neighbour.kill()
    print("| threads | spin count | idle, s | beside a busy process, s |\n| ---: | --- | ---: | ---: |")
    for (threads, spin), quiet, loud in zip(SETTINGS, idle, busy, strict=True):
        print(f"| {threads} | {spin or 'default'} | {quiet} | {loud} |")


if __name__ == "__main__":
    main()
