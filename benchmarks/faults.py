"""Faults on purpose: what is lost when processes die, disks fill up, bits flip and files come damaged.

    python benchmarks/faults.py --out docs/results/reliability [--kills 200] [--seed 0] [--only runs]

Real processes and real signals, on invented people and a tiny random model, so that a life takes about a second:

- `runs`: whole runs (bank, adaptation, answers, scores) killed with SIGKILL at random moments until one gets through;
  its results must be those of a run that nobody disturbed, and no finished file may change or go on the way.
- `writes`: a process that replaces files all the time, killed; every write it has been told of must be there, whole.
- `disk`: runs on a file system that is too small (needs root, to mount one); what is there must be whole, and the run
  must end as undisturbed ones do once there is room.
- `damage`: bits flipped, files cut and emptied in a finished run; the same call again must end with the same results.
- `fuzz`: mutated files of every data format; readers may raise the package's own errors and nothing else.
- `two`: two processes on one folder at once; one is refused, the other ends as undisturbed ones do.

Any violation ends the script with a message and exit code 1. Parts that are in the folder of results already stay there
until they are done again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from measuring import table, write
from mta.config import QUERY_VALUE, AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.data.personas import make_pool_and_targets
from mta.data.read import read_users
from mta.errors import MtaError
from mta.evaluation.run import run
from mta.evaluation.run_config import RunConfig
from mta.files import read_json, read_jsonl, write_json, write_text
from mta.progress import Step
from mta.tensor_files import load_tensors, save_tensors, tensors_checksum
from mta.vector_cache import VectorCache

TRAIN = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=3, batch_size=2, target_modules=QUERY_VALUE)
CONFIG = RunConfig(
    task_id="lamp-3",
    base="tiny-random",
    device="cpu",
    methods=("base", "population", "merged-only", "mta"),
    bank=BankConfig(
        prompts=PromptConfig(history_k=1, history_words=10, template="plain", max_tokens=700),
        anchors=AnchorConfig(bank_size=3, min_history=3, encoder="tiny-random"),
        train=TRAIN,
        match=MatchConfig(encoder="tiny-random"),
        population_train=TRAIN,
    ),
    adapt=replace(TRAIN, rank=1, alpha=2.0),
    engine=EngineConfig(slots=2, tokens_per_batch=1200, predict_tokens_per_batch=3000, checkpoint_every_s=0.0),
)
LONGEST_LIFE_S = 120.0
REFUSED = 2
"""Exit code of a child that was stopped by one of the package's own errors."""


class Violation(SystemExit):
    """Something was lost or damaged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"VIOLATION: {what}")


def people() -> tuple[list[Any], list[Any]]:
    """Return pool and targets."""
    pool, targets = make_pool_and_targets(
        "lamp-3", pool=6, targets=4, pool_history=(5, 7), target_history=(4, 5), target_queries=2, seed=0
    )
    return list(pool.users), list(targets.users)


# lives ------------------------------------------------------------------------------------------------------------


def live(folder: str, stages: Connection) -> None:
    """Run to the end, unless somebody kills this process before; tells each stage as it begins."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    @contextmanager
    def progress(stage: str) -> Iterator[Step]:
        stages.send(stage)
        yield lambda done, total: None

    try:
        run(*people(), CONFIG, Path(folder), progress=progress)
    except MtaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(REFUSED)
    os._exit(0)


def start(processes: ForkServerContext, folder: Path) -> tuple[Any, Connection]:
    """Start a life; returns the process and where it tells its stages."""
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=live, args=(str(folder), send))
    child.start()
    send.close()
    return child, receive


def last_stage(stages: Connection) -> str:
    """Return the stage a dead process was in."""
    stage = "loading"
    with contextlib.suppress(EOFError, OSError):
        while True:
            stage = stages.recv()
    return stage.split(" of ")[0]


def result_of(folder: Path) -> dict[str, Any]:
    """Return everything of a run that must not depend on what happened on the way."""
    adapters = sorted(folder.glob("adapters/*/*.safetensors"))
    return {
        "bank": read_json(folder / "bank" / "bank.json")["checksum"],
        "matches": read_json(folder / "matches.json"),
        "adapters": {str(path.relative_to(folder)): contents(path) for path in adapters},
        "predictions": (folder / "predictions.jsonl").read_bytes(),
        "scores": {name: one["metrics"] for name, one in read_json(folder / "scores.json")["methods"].items()},
    }


def contents(path: Path) -> tuple[str, dict[str, str]]:
    """Return the exact values and notes of an adapter; the order in which its file lists the notes is open."""
    tensors, notes = load_tensors(path)
    return tensors_checksum(tensors), notes


def require_same(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Refuse results that differ from an undisturbed run's."""
    for part, value in wanted.items():
        if found[part] != value:
            raise Violation(f"{what}: {part} differ from those of an undisturbed run")


def require_close(folder: Path, sound: Path, what: str) -> None:
    """Refuse results that differ from an undisturbed run's by more than rounding.

    An adapter that is trained again without those it was trained with goes through other packs, whose sums round
    otherwise.
    """
    found, wanted = result_of(folder), result_of(sound)
    if (found["bank"], found["adapters"].keys()) != (wanted["bank"], wanted["adapters"].keys()):
        raise Violation(f"{what}: the bank or the list of adapters differs from an undisturbed run's")
    for name in wanted["adapters"]:
        here, there = load_tensors(folder / name)[0], load_tensors(sound / name)[0]
        if any(not torch.allclose(here[key], there[key], rtol=0, atol=1e-5) for key in there):
            raise Violation(f"{what}: {name} differs from an undisturbed run's")
    for method, metrics in wanted["scores"].items():
        if any(abs(found["scores"][method][key] - value) > 1e-3 for key, value in metrics.items()):
            raise Violation(f"{what}: scores of {method} differ from an undisturbed run's")


def require_whole(folder: Path, what: str) -> None:
    """Refuse a folder that holds a half-written file under a final name."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".jsonl":
                read_jsonl(path)
            elif path.suffix in (".safetensors", ".checkpoint"):
                load_tensors(path)
            elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
                raise Violation(f"{what}: {path} ends in the middle")
        except MtaError as error:
            raise Violation(f"{what}: {error}") from error


class Finished:
    """The finished adapters of a run, which no later life may change or lose."""

    def __init__(self) -> None:
        self.seen: dict[Path, bytes] = {}

    def check(self, folder: Path) -> None:
        """Compare with what was there before, and remember what is new."""
        for path, data in self.seen.items():
            if not path.exists() or path.read_bytes() != data:
                raise Violation(f"{path} was finished and is {'changed' if path.exists() else 'gone'}")
        for path in folder.glob("adapters/*/*.safetensors"):
            self.seen[path] = path.read_bytes()


# the parts --------------------------------------------------------------------------------------------------------


def killed_runs(processes: ForkServerContext, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments; count by the stage they died in."""
    wanted, whole_s = undisturbed(processes, work)
    draw, died, runs = random.Random(seed), Counter[str](), 0
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
            died[last_stage(stages)] += 1
            require_whole(folder, "after a kill")
            finished.check(folder)
        finished.check(folder)
        require_same(result_of(folder), wanted, f"run {runs}")
        shutil.rmtree(folder)
    return {"kills": sum(died.values()), "by stage": dict(died.most_common()), "runs that got through": runs}


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


def full_disks(processes: ForkServerContext, work: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Run where there is no room, then make room and run on."""
    place = work / "small disk"
    place.mkdir()
    tried = 0
    for kilobytes in (40, 120, 200, 300, 400, 600):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place]).returncode:
            return {"skipped": "no file system can be mounted here; it takes root"}
        try:
            child, _ = start(processes, place / "run")
            child.join(LONGEST_LIFE_S)
            if child.exitcode not in (0, REFUSED):
                raise Violation(f"on {kilobytes} KiB a run ended with exit code {child.exitcode}")
            tried += child.exitcode == REFUSED
            if (place / "run").exists():
                require_whole(place / "run", f"on a disk of {kilobytes} KiB")
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            child, _ = start(processes, place / "run")
            child.join(LONGEST_LIFE_S)
            if child.exitcode != 0:
                raise Violation(f"with room again the run ended with exit code {child.exitcode}")
            require_same(result_of(place / "run"), wanted, f"after a full disk of {kilobytes} KiB")
        finally:
            subprocess.run(["umount", place], check=True)
    return {"runs that met a full disk": tried, "runs that went on with room": 6}


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file; returns how."""
    data, how = bytearray(path.read_bytes()), draw.choice(("flip", "flip", "cut", "empty"))
    if how == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(max(1, len(data))) :]
    else:
        data.clear()
    path.write_bytes(bytes(data))
    return how


def damaged_files(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Damage one file of a finished run at a time and run again; the result must be the same.

    What has no checksum of its own, because it is written anew from what has, may change until the next call.
    """
    sound, draw, tried, refused = work / "undisturbed", random.Random(seed), Counter[str](), Counter[str]()
    folder = work / "damaged"
    names = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.is_file()]
    logging.disable(logging.WARNING)
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        name = draw.choice(names)
        tried[damage(folder / name, draw)] += 1
        try:
            run(*people(), CONFIG, folder)
        except MtaError as error:
            refused[name.name] += 1
            if name.name not in str(error):
                raise Violation(f"{name} was damaged and the error does not name it: {error}") from error
            continue
        require_close(folder, sound, f"after damage to {name}")
    logging.disable(logging.NOTSET)
    return {"damaged": dict(tried), "refused by name": dict(refused), "made again": count - refused.total()}


RECORDS: dict[str, list[dict[str, Any]]] = {
    "lamp": [
        {"id": "a-1", "user_id": "a", "input": "q: one", "profile": [{"id": "p", "text": "x", "score": 3, "date": 1}]},
        {"id": 2, "input": "q: two", "profile": []},
    ],
    "processed": [{"user_id": 1, "profile": [{"text": "x"}], "query": [{"id": "1", "input": "i", "gold": "g"}]}],
    "jsonl": [{"user_id": "a", "input": "x", "output": "y", "time": "2020"}, {"user_id": "a", "input": "z"}],
}
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1.5, 10**400, float("nan"), "", " ", "\ud800", [], {}, [[]], {"id": None}, [{"id": 1}]),
)


def mutate(value: Any, draw: random.Random) -> Any:
    """Return a record with something in it gone or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        container, key = draw.choice(places)
        if draw.random() < 0.5:
            del container[key]
        else:
            container[key] = copy.deepcopy(draw.choice(HOSTILE))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def fuzzed_readers(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Read mutated files of every format."""
    folder, draw, outcome = work / "fuzz", random.Random(seed), Counter[str]()
    folder.mkdir()
    path = folder / "x_questions.json"
    for number in range(count):
        kind = draw.choice(sorted(RECORDS))
        records = mutate(RECORDS[kind], draw)
        rows = records if kind == "jsonl" and isinstance(records, list) else [records]
        data = "\n".join(map(json.dumps, rows)).encode()
        if draw.random() < 0.3:
            place = draw.randrange(len(data) + 1)
            data = data[:place] + draw.randbytes(draw.randint(0, 4)) + data[place + draw.randint(0, 9) :]
        path.write_bytes(data)
        try:
            read_users(path, format=draw.choice((kind, "auto")))
            outcome["read"] += 1
        except MtaError:
            outcome["refused"] += 1
        except Exception as error:
            kept = write_kept(work, data)
            raise Violation(f"input {number} ({kept}): {type(error).__name__}: {error}") from error
    return {"inputs": count, **dict(outcome)}


def write_kept(work: Path, data: bytes) -> Path:
    """Keep an input that did harm, outside of the folder that goes away."""
    path = work.parent / "faults-input.json"
    path.write_bytes(data)
    return path


def two_at_once(processes: ForkServerContext, work: Path, wanted: dict[str, Any], count: int) -> dict[str, Any]:
    """Start two processes on one folder."""
    refused = 0
    for number in range(count):
        folder = work / f"two-{number}"
        both = [start(processes, folder) for _ in range(2)]
        for child, _ in both:
            child.join(LONGEST_LIFE_S)
        codes = sorted(child.exitcode for child, _ in both)
        if codes not in ([0, 0], [0, REFUSED]):
            raise Violation(f"two processes on one folder ended with exit codes {codes}")
        refused += REFUSED in codes
        require_same(result_of(folder), wanted, "two processes on one folder")
        shutil.rmtree(folder)
    return {"pairs": count, "refused": refused}


# all of it --------------------------------------------------------------------------------------------------------

PARTS = ("runs", "writes", "disk", "damage", "fuzz", "two")


def main() -> None:
    """Do what is asked for and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills of runs; as many of writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the lives
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mta.evaluation.run", "mta.tiny_model", "sklearn.cluster", "bm25s"])
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["MTA_CACHE"] = str(work / "cache")
        wanted, _ = undisturbed(processes, work)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "runs": lambda: killed_runs(processes, work, options.kills, options.seed),
            "writes": lambda: killed_writes(processes, work, options.kills, options.seed),
            "disk": lambda: full_disks(processes, work, wanted),
            "damage": lambda: damaged_files(work, options.kills, options.seed),
            "fuzz": lambda: fuzzed_readers(work, 50 * options.kills, options.seed),
            "two": lambda: two_at_once(processes, work, wanted, max(1, options.kills // 20)),
        }
        out = options.out / "faults.json" if options.out else None
        found = read_json(out) if out and out.exists() else {}
        found |= {"seed": options.seed, **{name: parts[name]() for name in options.only or PARTS}}
    rows = [(name, what, json.dumps(count)) for name in PARTS if name in found for what, count in found[name].items()]
    page = f"{table(['part', 'what', 'how often'], rows)}\n\nLost or damaged: nothing."
    write(out, found, page)


if __name__ == "__main__":
    main()
