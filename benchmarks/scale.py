"""What serving many people costs as their number grows: matching them to a bank, and training their adapters.

    python benchmarks/scale.py --out docs/results/speed/scale [--users 1000000] [--trained 10000] [--anyway]

Matching: drawn vectors of 384 dimensions, a bank of 1,000 anchors, two anchors a user. Training: a random model of two
layers, four examples of 20 to 60 tokens a user, one update. Each number of users runs in a process of its own, so that
the peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from measuring import machine, refuse_busy, table, write
from mta.base_model import load_base_model
from mta.config import EngineConfig, TrainConfig
from mta.merging import cosine_similarity, match_anchors
from mta.packing import TokenRow
from mta.runtime import keep_freed_memory, peak_rss_bytes
from mta.training import train
from mta.training_plan import TrainJob

matplotlib.use("Agg")
from matplotlib import pyplot

DIMENSIONS, ANCHORS, CHUNK = 384, 1000, 10_000


def match(users: int) -> None:
    """Match users in chunks, as they would come from a store."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(ANCHORS, DIMENSIONS, generator=generator)
    names = [f"anchor {number}" for number in range(ANCHORS)]
    for start in range(0, users, CHUNK):
        count = min(CHUNK, users - start)
        vectors = torch.randn(count, DIMENSIONS, generator=generator)
        found = match_anchors(
            [str(start + number) for number in range(count)], cosine_similarity(vectors, anchors), names, top_k=2
        )
        if len(found) != count:
            raise SystemExit(f"matched {len(found)} of {count} users")


def personalize(users: int) -> None:
    """Train an adapter for each user and let it go."""
    base = load_base_model("tiny-random", dtype="float32")
    config = TrainConfig(rank=4, alpha=8.0, epochs=1, batch_size=4)
    for start in range(0, users, CHUNK):
        jobs = list(_jobs(range(start, min(start + CHUNK, users)), config))
        done = sum(1 for _ in train(base, jobs, engine=EngineConfig(slots=32)))
        if done != len(jobs):
            raise SystemExit(f"trained {done} of {len(jobs)} users")


def _jobs(numbers: range, config: TrainConfig) -> Iterator[TrainJob]:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(20, 61, (4,), generator=generator).tolist()
        rows = (TokenRow(tuple(torch.randint(3, 250, (n,), generator=generator).tolist()), (5, 6, 1)) for n in lengths)
        yield TrainJob(f"user {number}", tuple(rows), config)


WORK = {"match": match, "personalize": personalize}


def in_own_process(work: str, users: int, threads: int) -> dict[str, Any]:
    """Run one size and return its seconds and peak memory."""
    command = [sys.executable, __file__, "--child", work, str(users), "--threads", str(threads)]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    print(f"{work} {users}: {line}", file=sys.stderr)
    return {"users": users, **json.loads(line)}


def child(work: str, users: int) -> None:
    """Do one size and print what it took."""
    keep_freed_memory()
    started = time.perf_counter()
    WORK[work](users)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": round(seconds, 2), "peak_gib": round((peak_rss_bytes() or 0) / 2**30, 2)}))


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot time and memory against the number of users."""
    figure, axes = pyplot.subplots(len(found), 2, figsize=(8, 3 * len(found)), squeeze=False)
    for row, (work, sizes) in zip(axes, found.items(), strict=True):
        users = [size["users"] for size in sizes]
        for axis, (key, label) in zip(row, (("seconds", "seconds"), ("peak_gib", "peak memory, GiB")), strict=True):
            axis.plot(users, [size[key] for size in sizes], "o-", color="#0072B2", label=work)
            axis.set(xlabel="users", ylabel=label, xscale="log", title=work)
        row[0].plot(users, [sizes[-1]["seconds"] * n / users[-1] for n in users], "--", color="#666666", label="linear")
        row[0].set_yscale("log")
        row[0].legend()
        row[1].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Software": None})


def sizes(largest: int, smallest: int) -> Sequence[int]:
    """Return powers of ten from `smallest` up to `largest`."""
    found = [smallest]
    while found[-1] * 10 <= largest:
        found.append(found[-1] * 10)
    return found


def main() -> None:
    """Measure all sizes; write JSON, a page and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000, help="most users matched")
    parser.add_argument("--trained", type=int, default=10_000, help="most users trained")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "USERS"))
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    refuse_busy(anyway=options.anyway)
    before = machine()
    found = {
        "match": [in_own_process("match", n, options.threads) for n in sizes(options.users, 1000)],
        "personalize": [in_own_process("personalize", n, options.threads) for n in sizes(options.trained, 100)],
    }
    head = ["", "users", "seconds", "users/s", "peak memory, GiB"]
    rows = [
        [work, one["users"], one["seconds"], round(one["users"] / one["seconds"]), one["peak_gib"]]
        for work, measured in found.items()
        for one in measured
    ]
    write(options.out / "scale.json" if options.out else None, {**found, "machine": before}, table(head, rows))
    if options.out:
        draw(found, options.out / "scale.png")


if __name__ == "__main__":
    main()
