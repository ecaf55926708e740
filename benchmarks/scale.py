"""What serving many people costs as their number grows: matching them to a bank, training, the whole path.

    python benchmarks/scale.py --out docs/results/speed [--users 1000000] [--trained 10000] [--anyway]

Each is one call of the library with all users, as people make it, whose result is kept:

- `match`: drawn vectors of 384 dimensions, a bank of 1,000 anchors, two anchors a user (`match_in_blocks`);
- `train`: a random model of two layers, four examples of 20 to 60 tokens a user, one update; every adapter is written
  to a folder of its own (`train_and_store`, told about its progress);
- `personalize`: the same model and updates; four short texts a user, embedded, matched to a bank of a few anchors,
  made into prompts and trained on over the merged anchors (`personalize_users`).

Each number of users runs in a process of its own, so that the peak memory is its own; what takes less than a minute
runs several times. Seconds are those of the call, without loading and without drawing its input.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch

from measuring import LONG_S, powers_of_ten, rows_of, run, table, watched, write
from mta.bank_building import Encoders, build_bank
from mta.base_model import load_base_model
from mta.config import AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.encoders import HashingEncoder
from mta.memory_at_hand import keep_freed_memory, peak_rss_bytes
from mta.merging import match_anchors, match_in_blocks
from mta.packing import TokenRow
from mta.personalize import Resources, personalize_users
from mta.records import HistoryItem, User
from mta.tasks import get_task
from mta.training import TrainProgress
from mta.training_plan import TrainJob
from mta.training_store import train_and_store

matplotlib.use("Agg")
from matplotlib import pyplot

DIMENSIONS, ANCHORS = 384, 1000
ONE_UPDATE = TrainConfig(rank=4, alpha=8.0, epochs=1, batch_size=4)
ENGINE = EngineConfig(slots=32)
BANK = BankConfig(
    prompts=PromptConfig(template="plain", max_tokens=512),
    anchors=AnchorConfig(bank_size=4, min_history=1, encoder="tiny-random"),
    train=ONE_UPDATE,
    match=MatchConfig(encoder="tiny-random"),
)
WORDS = ("garden", "engine", "violin", "harbour", "winter", "bread", "letter", "stone")


def match(users: int, _: Path) -> Callable[[], Sized]:
    """Draw vectors and return the call that matches them."""
    generator = torch.Generator().manual_seed(0)
    anchors, vectors = (torch.randn(count, DIMENSIONS, generator=generator) for count in (ANCHORS, users))
    names, ids = [f"anchor {number}" for number in range(ANCHORS)], [f"user {number}" for number in range(users)]
    return partial(match_in_blocks, ids, vectors, names, anchors, choose=match_anchors, top_k=2)


def train(users: int, folder: Path) -> Callable[[], Sized]:
    """Draw token rows and return the call that trains and stores an adapter for each user."""
    base, jobs = load_base_model("tiny-random", dtype="float32"), list(_jobs(users))
    reports: dict[str, TrainProgress] = {}

    def work() -> Sized:
        told = partial(reports.__setitem__, "last")
        return train_and_store(base, jobs, folder, engine=ENGINE, on_progress=told).adapters

    return work


def _jobs(users: int) -> Iterator[TrainJob]:
    for number in range(users):
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(20, 61, (4,), generator=generator).tolist()
        rows = (TokenRow(tuple(torch.randint(3, 250, (n,), generator=generator).tolist()), (5, 6, 1)) for n in lengths)
        yield TrainJob(f"user {number}", tuple(rows), ONE_UPDATE)


def personalize(users: int, folder: Path) -> Callable[[], Sized]:
    """Draw people, build a bank of others, and return the call that personalizes all of them."""
    base, task, encoder = load_base_model("tiny-random", dtype="float32"), get_task("own"), HashingEncoder()
    pool, encoders = _people("pool", 12, items=8), Encoders(encoder, encoder)
    bank = build_bank(pool, task, base, folder / "bank", config=BANK, encoders=encoders, engine=ENGINE)
    resources = Resources(
        base=base,
        task=task,
        prompts=BANK.prompts,
        adapt=ONE_UPDATE,
        folder=folder / "users",
        bank=bank,
        encoder=encoder,
        match=BANK.match,
        engine=ENGINE,
    )
    people = _people("user", users, items=4)
    return lambda: personalize_users(people, resources).users


def _people(name: str, count: int, *, items: int) -> list[User]:
    """Draw people who write short texts."""

    def item(draw: random.Random, number: int) -> HistoryItem:
        return HistoryItem(str(number), {"input": " ".join(draw.choices(WORDS, k=6)), "output": draw.choice(WORDS)})

    draws = [random.Random(f"{name} {number}") for number in range(count)]
    return [
        User(f"{name} {number}", tuple(item(draw, place) for place in range(items)))
        for number, draw in enumerate(draws)
    ]


WORK: Mapping[str, Callable[[int, Path], Callable[[], Sized]]] = {
    "match": match,
    "train": train,
    "personalize": personalize,
}
"""Name -> from a number of users and an empty folder to the call that is measured."""


def child(work: str, users: int) -> None:
    """Do one size and print what it took."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        go = WORK[work](users, Path(folder))
        started = time.perf_counter()
        found = go()
        seconds = time.perf_counter() - started
    if len(found) != users:
        raise SystemExit(f"{work}: {len(found)} of {users} users")
    print(json.dumps({"seconds": seconds, "peak_gib": (peak_rss_bytes() or 0) / 2**30}))


def in_own_process(work: str, users: int, threads: int) -> dict[str, float]:
    """Run one size and return its seconds and peak memory."""
    command = [sys.executable, __file__, "--child", work, str(users), "--threads", str(threads)]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
    print(f"{work} {users}: {line}", file=sys.stderr)
    found: dict[str, float] = json.loads(line)
    return found


def measure(work: str, users: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one size as often as asked for, once where it takes long."""
    turns = [in_own_process(work, users, options.threads)]
    while len(turns) < options.repeats and turns[0]["seconds"] < LONG_S:
        turns.append(in_own_process(work, users, options.threads))
    return {
        "users": users,
        "repeats": len(turns),
        **rows_of({work: [turn["seconds"] for turn in turns]}, units=users, unit="users")[work],
        "peak_gib": round(max(turn["peak_gib"] for turn in turns), 2),
    }


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Plot time and memory against the number of users."""
    figure, axes = pyplot.subplots(len(found), 2, figsize=(8, 3 * len(found)), squeeze=False)
    for row, (work, sizes) in zip(axes, found.items(), strict=True):
        users = [size["users"] for size in sizes]
        for axis, (key, label) in zip(row, (("median_s", "seconds"), ("peak_gib", "peak memory, GiB")), strict=True):
            axis.plot(users, [size[key] for size in sizes], "o-", color="#0072B2", label=work)
            axis.set(xlabel="users", ylabel=label, xscale="log", title=work)
        linear = [sizes[-1]["median_s"] * n / users[-1] for n in users]
        row[0].plot(users, linear, "--", color="#666666", label="linear")
        row[0].set_yscale("log")
        row[0].legend()
        row[1].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Software": None})


def page_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return all sizes as Markdown."""
    head = ["", "users", "median s", "min - max", "repeats", "users/s", "peak memory, GiB"]
    rows = [
        [
            work,
            one["users"],
            one["median_s"],
            f"{one['min_s']} - {one['max_s']}",
            one["repeats"],
            round(one["users_per_s"]),
            one["peak_gib"],
        ]
        for work, measured in found.items()
        for one in measured
    ]
    return f"### Many users in one call\n\n{table(head, rows)}"


def main() -> None:
    """Measure all sizes; write JSON, a page and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000, help="most users matched")
    parser.add_argument("--trained", type=int, default=10_000, help="most users trained and personalized")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="of what takes less than a minute")
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "USERS"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    wanted = {
        "match": powers_of_ten(1000, options.users),
        "train": powers_of_ten(100, options.trained),
        "personalize": powers_of_ten(100, options.trained),
    }
    found, where = watched(
        lambda: {work: [measure(work, users, options) for users in asked] for work, asked in wanted.items()},
        anyway=options.anyway,
    )
    write(options.out / "scale.json" if options.out else None, {**found, "machine": where}, page_of(found))
    if options.out:
        draw(found, options.out / "scale.png")


if __name__ == "__main__":
    run(main)
