"""SIGKILL at random moments, of runs and of writes; and two processes on one folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from fault_lives import (
    LONGEST_LIFE_S,
    REFUSED,
    Finished,
    Violation,
    last_told,
    require_same,
    require_whole,
    result_of,
    start,
)
from mta.files import read_json, write_json, write_text
from mta.tensor_files import load_tensors, save_tensors
from mta.vector_cache import VectorCache


def killed_runs(processes: ForkServerContext, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments; count by the stage they died in."""
    wanted, whole_s = undisturbed(processes, work)
    draw, died, runs, stored_again = random.Random(seed), Counter[str](), 0, 0
    while sum(died.values()) < kills:
        folder, finished = work / f"run-{runs}", Finished()
        runs += 1
        while True:
            child, stages = start(processes, folder)
            child.join(draw.uniform(0.0, whole_s) if sum(died.values()) < kills else LONGEST_LIFE_S)
            if child.exitcode is None:
                os.kill(child.pid, signal.SIGKILL)
                child.join()
            if child.exitcode == 0:
                break
            if child.exitcode != -signal.SIGKILL:
                raise Violation(f"a run after a kill ended with exit code {child.exitcode}")
            died[last_told(stages).split(" of ")[0]] += 1
            require_whole(folder, "after a kill")
            finished.check(folder)
        finished.check(folder)
        require_same(result_of(folder), wanted, f"run {runs}")
        stored_again += finished.stored_again
        shutil.rmtree(folder)
    return {
        "kills": sum(died.values()),
        "by stage": dict(died.most_common()),
        "runs that got through": runs,
        "adapters finished after the last checkpoint and stored again, the same": stored_again,
    }


def undisturbed(processes: ForkServerContext, work: Path) -> tuple[dict[str, Any], float]:
    """Return the result of a run that nobody disturbs, and how long it takes."""
    folder = work / "undisturbed"
    for _ in range(2):  # the second one is as quick as the others will be
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        child, _ = start(processes, folder)
        child.join(LONGEST_LIFE_S)
        if child.exitcode != 0:
            raise SystemExit(f"an undisturbed run ended with exit code {child.exitcode}")
    return result_of(folder), time.monotonic() - started


def write_forever(folder: str, written: Connection) -> None:
    """Replace files by newer versions all the time, and tell each version once it is written."""
    torch.set_num_threads(1)
    place, cache = Path(folder), VectorCache(Path(folder) / "cache.sqlite")
    version = 1 + max((read_version(name, place) or 0 for name in WRITERS), default=0)
    while True:
        for name, writer in WRITERS.items():
            writer(place, cache, version)
            written.send((name, version))
        version += 1


def _write_tensors(place: Path, cache: VectorCache, version: int) -> None:
    save_tensors(place / "tensors.safetensors", {"a": torch.full((999 + version % 7, 31), float(version))})


WRITERS: dict[str, Callable[[Path, VectorCache, int], None]] = {
    "json": lambda place, cache, version: write_json(place / "a.json", {"version": version, "body": "x" * 20_000}),
    "text": lambda place, cache, version: write_text(place / "a.txt", f"{version}\n" * 4000),
    "tensors": _write_tensors,
    "cache": lambda place, cache, version: cache.write(
        {bytes(32): torch.full((384,), float(version)), bytes([1]) * 32: torch.full((384,), float(version))}
    ),
}


def read_version(name: str, place: Path) -> int | None:
    """Return the one version that a file holds from its first byte to its last; None where it is not there."""
    if name == "cache":
        found = VectorCache(place / "cache.sqlite").read([bytes(32), bytes([1]) * 32], dimensions=384)
        versions = {int(value) for vector in found.values() for value in vector.tolist()}
        count = len(found)
        if count not in (0, 2):
            raise Violation("the cache holds half of a transaction")
    elif not (path := place / {"json": "a.json", "text": "a.txt", "tensors": "tensors.safetensors"}[name]).exists():
        return None
    elif name == "json":
        versions = {read_json(path)["version"]}
    elif name == "text":
        versions = set(map(int, path.read_text().split()))
    else:
        versions = set(map(int, load_tensors(path)[0]["a"].flatten().tolist()))
    if len(versions) > 1:
        raise Violation(f"{name} holds parts of the versions {sorted(versions)}")
    return versions.pop() if versions else None


def killed_writes(processes: ForkServerContext, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a process that only writes; every write it was told of must be there, or the next one."""
    folder, draw, told = work / "writes", random.Random(seed), dict.fromkeys(WRITERS, 0)
    folder.mkdir()
    for _ in range(kills):
        receive, send = processes.Pipe(duplex=False)
        child = processes.Process(target=write_forever, args=(str(folder), send))
        child.start()
        send.close()
        with contextlib.suppress(EOFError):
            told.update([receive.recv()])  # it has begun
            time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        with contextlib.suppress(EOFError, OSError):
            while True:
                told.update([receive.recv()])
        for name, version in told.items():
            found = read_version(name, folder) or 0
            if not version <= found <= max(told.values()) + 1:
                raise Violation(f"{name}: version {version} was written, {found} is there")
    left = len(list(folder.glob(".*.tmp")))
    return {"kills": kills, "versions written": max(told.values()), "half-made files left beside": left}


def two_at_once(processes: ForkServerContext, work: Path, wanted: dict[str, Any], count: int) -> dict[str, Any]:
    """Start a process in a folder where another one is at work, and stopped there until the second has ended."""
    refused = 0
    for number in range(count):
        folder = work / f"two-{number}"
        first, stages = start(processes, folder)
        stages.recv()  # it has begun, so the folder is its own
        os.kill(first.pid, signal.SIGSTOP)
        try:
            second, heard = start(processes, folder)
            second.join(LONGEST_LIFE_S)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        told = last_told(heard) if second.exitcode is not None else "nothing yet"
        if second.exitcode != REFUSED or f"{folder} is in use" not in told:
            first.kill()
            second.kill()
            raise Violation(f"a second process in {folder} ended with exit code {second.exitcode} ({told})")
        refused += 1
        first.join(LONGEST_LIFE_S)
        if first.exitcode != 0:
            raise Violation(f"a process beside which another was refused ended with exit code {first.exitcode}")
        require_same(result_of(folder), wanted, "two processes on one folder")
        shutil.rmtree(folder)
    return {"pairs": count, "refused": refused}
