"""Many people asking one server at once: throughput, times to an answer, errors, and the memory of the server.

    mta demo
    python benchmarks/serve_load.py --bank runs/demo/bank --data runs/demo/data/pool_questions.json \\
        --out docs/results/serving [--users 64] [--connections 32] [--minutes 10]

`mta serve` runs in a process of its own, on loopback, over a new SQLite store. The people are created with their
histories over the API, and half of them are adapted, which is waited for. Then connections ask without a pause, each
time as the next person, in slices that take turns: as the person (`mta`), and the same questions of the bare base model
(`base`), which is the floor. Every answer's status is counted; memory is that of the server's process, at the end of
each slice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from measuring import table, watched, write
from mta.bank import load_bank
from mta.data.read import read_users
from mta.records import User
from server_process import ServerProcess

WAYS = ("mta", "base")
SLICE_S = 60.0
WARM_UP = 2
"""Slices of each way that are not counted, and after which memory is not to grow any more."""
PATIENCE_S = 600.0


@dataclass(slots=True)
class Slice:
    """What one way saw in one slice."""

    seconds: list[float] = field(default_factory=list)
    """Of every answer."""
    statuses: Counter[int] = field(default_factory=Counter)
    wall_s: float = 0.0
    memory_mb: float = 0.0


def invented(users: Sequence[User], count: int) -> list[User]:
    """Return as many people as asked for: those there are, again and again under other names."""
    chosen = itertools.islice(itertools.cycle(users), count)
    return [User(f"{user.user_id}-{n}", user.history, user.queries) for n, user in enumerate(chosen)]


def server_of(bank: Path, folder: Path) -> ServerProcess:
    """Start a server over a new store."""
    options = ["--bank", bank, "--store", f"sqlite:///{folder / 'users.db'}", "--no-playground"]
    return ServerProcess([*options, "--requests-per-minute", 10**6], folder)


def create(address: str, people: Sequence[User]) -> None:
    """Create people with their histories, and have half of them adapted."""
    with httpx.Client(base_url=address, timeout=60) as client:
        for user in people:
            items = [{"id": item.item_id, "fields": dict(item.fields), "time": item.time} for item in user.history]
            client.post("/v1/users", json={"id": user.user_id, "history": items}).raise_for_status()
        ordered = client.post("/v1/adapt", json={"users": [user.user_id for user in people[::2]]}).raise_for_status()
        until = time.monotonic() + PATIENCE_S
        while (job := client.get(f"/v1/jobs/{ordered.json()['id']}").json())["state"] not in ("done", "failed"):
            if time.monotonic() > until:
                raise SystemExit("adaptation takes too long")
            time.sleep(1)
        if job["state"] == "failed":
            raise SystemExit(f"adaptation failed: {job['messages']}")


async def ask_for(seconds: float, address: str, way: str, people: Sequence[User], connections: int) -> Slice:
    """Let connections ask without a pause for some time."""
    found, turns = Slice(), itertools.cycle(people)
    began = time.perf_counter()

    async def one(client: httpx.AsyncClient) -> None:
        while time.perf_counter() - began < seconds:
            user = next(turns)
            body = {
                "model": way, "user": user.user_id, "messages": [{"role": "user", "content": user.queries[0].text}]
            }  # fmt: skip
            started = time.perf_counter()
            answer = await client.post("/v1/chat/completions", json=body)
            found.seconds.append(time.perf_counter() - started)
            found.statuses[answer.status_code] += 1

    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(connections)))
    found.wall_s = time.perf_counter() - began
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run a server and load it."""
    task = load_bank(options.bank).task
    users = [user for user in read_users(options.data, task=task).users if user.queries and user.history]
    people = invented(users, options.users)
    slices: dict[str, list[Slice]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary, server_of(options.bank, Path(temporary)) as server:
        process = psutil.Process(server.process.pid)
        create(server.address, people)
        turns = max(1, round(60 * options.minutes / SLICE_S))
        for _ in range(WARM_UP + turns):
            for way in WAYS:
                found = asyncio.run(ask_for(SLICE_S, server.address, way, people, options.connections))
                found.memory_mb = process.memory_info().rss / 2**20
                slices[way].append(found)
    return summary(slices, options)


def summary(slices: Mapping[str, Sequence[Slice]], options: argparse.Namespace) -> dict[str, Any]:
    """Return what was found after the warm-up."""
    counted = {way: found[WARM_UP:] for way, found in slices.items()}
    in_turn = [one for pair in zip(*slices.values(), strict=True) for one in pair]
    ratios = [
        (len(one.seconds) / one.wall_s) / (len(floor.seconds) / floor.wall_s)
        for one, floor in zip(counted["mta"], counted["base"], strict=True)
    ]
    return {
        "users": options.users,
        "connections": options.connections,
        "rows": {way: row_of(found) for way, found in counted.items()},
        "ratios": {"serve_over_base": round(statistics.median(ratios), 3)},
        "memory of the server, MB": [round(one.memory_mb, 1) for one in in_turn],
        "warm-up": f"the first {WARM_UP * len(WAYS)} values",
    }


def row_of(slices: Sequence[Slice]) -> dict[str, Any]:
    """Return throughput, times and statuses of one way."""
    seconds = [value for one in slices for value in one.seconds]
    statuses = Counter(str(status) for one in slices for status in one.statuses.elements())
    return {
        "answers": len(seconds),
        "answers_per_s": round(len(seconds) / sum(one.wall_s for one in slices), 2),
        "p50_s": round(float(np.quantile(seconds, 0.5)), 3),
        "p95_s": round(float(np.quantile(seconds, 0.95)), 3),
        "statuses": dict(sorted(statuses.items())),
    }


def page_of(found: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        [way, row["answers"], row["answers_per_s"], row["p50_s"], row["p95_s"],
         ", ".join(f"{count} x {status}" for status, count in row["statuses"].items())]
        for way, row in found["rows"].items()
    ]  # fmt: skip
    memory = ", ".join(map(str, found["memory of the server, MB"]))
    return "\n\n".join(
        [
            f"### {found['users']} users, {found['connections']} connections",
            table(["model", "answers", "answers/s", "p50 s", "p95 s", "statuses"], rows),
            f"mta / base: **{found['ratios']['serve_over_base']}** (median of slices of {SLICE_S:.0f} s in turn)",
            f"Memory of the server after each slice, MB ({found['warm-up']} are warm-up): {memory}",
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="people of the bank's task, with questions")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10, help="of each way, beside the warm-up")
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    found, where = watched(lambda: measure(options), anyway=options.anyway)
    write(options.out / "load.json" if options.out else None, {**found, "machine": where}, page_of(found))


if __name__ == "__main__":
    main()
