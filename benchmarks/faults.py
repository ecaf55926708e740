"""Faults on purpose: what is lost when processes die, disks fill up, bits flip and files come damaged.

    python benchmarks/faults.py --out docs/results/reliability [--kills 200] [--seed 0] [--only runs]

Real processes and real signals, on invented people and a tiny random model, so that a life takes about a second:

- `runs`: whole runs (bank, adaptation, answers, scores) killed with SIGKILL at random moments until one gets through;
  its results must be those of a run that nobody disturbed, and no finished adapter, bank or file of answers may change,
  go, or be made a second time on the way.
- `writes`: a process that replaces files all the time, killed; every write it has been told of must be there, whole.
- `disk`: runs on a file system that is too small (needs root, to mount one); it must have been full, what is there must
  be whole, and the run must end as undisturbed ones do once there is room.
- `damage`: bits flipped, files cut and emptied in a finished run, in runs cut off in a training and in their caches of
  vectors. The same call again must refuse the file by name, or end with the same results; where it reads the file, it
  must have named it.
- `fuzz`: mutated files of every data format; readers may raise the package's own errors and nothing else.
- `two`: a process starts in a folder where another is at work; it is refused, the other ends as undisturbed ones do.

Any violation ends the script with a message and exit code 1. Parts that are in the folder of results already stay there
until they are done again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from measuring import table, write
from mta.config import QUERY_VALUE, AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.data.personas import make_pool_and_targets
from mta.data.read import read_users
from mta.errors import MtaError, StorageError
from mta.evaluation.run import run
from mta.evaluation.run_config import RunConfig
from mta.files import SEAL, read_json, read_jsonl, safe_name, write_json, write_text
from mta.progress import Progress, Step, silent
from mta.tensor_files import load_tensors, save_tensors, tensors_checksum
from mta.training_store import CHECKPOINT, PLAN
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
"""Exit code of a child that was stopped by one of the package's own errors, which it tells last."""
ROUNDING = 1e-5
"""How far values of adapters trained again in other company may be from those of an undisturbed run."""
NUMBERS = 1e-3
"""How far what follows from them may be: likelihoods, distances, scores."""


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
        stages.send(f"{type(error).__name__}: {error}")
        os._exit(REFUSED)
    os._exit(0)


def start(processes: ForkServerContext, folder: Path) -> tuple[Any, Connection]:
    """Start a life; returns the process and where it tells its stages."""
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=live, args=(str(folder), send))
    child.start()
    send.close()
    return child, receive


def last_told(stages: Connection) -> str:
    """Return what a dead process has told last: the stage it was in, or the error that stopped it."""
    told = "loading"
    with contextlib.suppress(EOFError, OSError):
        while True:
            told = stages.recv()
    return told


def result_of(folder: Path) -> dict[str, Any]:
    """Return everything of a run that must not depend on what happened on the way."""
    adapters = sorted(folder.glob("adapters/*/*.safetensors"))
    return {
        "bank": read_json(folder / "bank" / "bank.json")["checksum"],
        "matches": read_json(folder / "matches.json"),
        "adapters": {str(path.relative_to(folder)): contents(path) for path in adapters},
        "records": {path.name: read_json(path) for path in sorted(folder.glob("adapters/*.json"))},
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
    for name in sorted({path.relative_to(place) for place in (folder, sound) for path in finished_tensors(place)}):
        if not tensors_are_close(folder / name, sound / name):
            raise Violation(f"{what}: {name} differs from an undisturbed run's")
    found, wanted = values_of(folder), values_of(sound)
    for part in wanted:
        if not is_close(found[part], wanted[part]):
            raise Violation(f"{what}: {part} differ from those of an undisturbed run")


def finished_tensors(folder: Path) -> list[Path]:
    """List the bank's tensors and the adapters of a run."""
    return [*folder.glob("bank/*.safetensors"), *folder.glob("adapters/*/*.safetensors")]


def tensors_are_close(one: Path, other: Path) -> bool:
    """Say whether two files are there and hold the same tensors but for rounding."""
    if not (one.exists() and other.exists()):
        return False
    here, there = load_tensors(one)[0], load_tensors(other)[0]
    return here.keys() == there.keys() and all(
        here[key].shape == there[key].shape and torch.allclose(here[key], there[key], rtol=0, atol=ROUNDING)
        for key in there
    )


def values_of(folder: Path) -> dict[str, Any]:
    """Return what a run has written besides tensors, without what stands for their exact values."""
    result = result_of(folder)
    records = result["records"]
    for name, record in records.items():
        kept = {key: value for key, value in record.items() if key not in ("bank", SEAL)}
        records[name] = {**kept, "users": list(record["users"])}
    answers = [row for _, row in read_jsonl(folder / "predictions.jsonl")]
    return {"matches": result["matches"], "records": records, "answers": answers, "scores": result["scores"]}


def is_close(found: Any, wanted: Any) -> bool:
    """Say whether two JSON values are equal, numbers with a point but for what rounding does to them."""
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(found - wanted) <= NUMBERS
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(is_close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(is_close, found, wanted))
    return bool(found == wanted)


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


@dataclass(frozen=True)
class Kept:
    """A finished file as a life left it."""

    data: bytes
    stamp: tuple[int, int]
    """Its number and time in the file system; another one is another file."""
    settled: bool
    """No later life has a reason to write it again."""


class Finished:
    """The finished files of a run, which no later life may change or lose, or make a second time.

    Two kinds are written again with the same content, rightly. An adapter that was finished after the last checkpoint
    is stored again by the life that goes on from there. A file of answers is written by every call that has read it;
    the seconds that answering took are in it, so answers given a second time would be other bytes.
    """

    def __init__(self) -> None:
        self.seen: dict[Path, Kept] = {}
        self.stored_again = 0

    def check(self, folder: Path) -> None:
        """Compare with what was there before, and remember what is there now."""
        now = {path: Kept(path.read_bytes(), stamp_of(path), is_settled(path)) for path in finished_files(folder)}
        for path, before in self.seen.items():
            if path not in now:
                if path.is_relative_to(folder / "bank" / "work") and (folder / "bank" / "bank.json").exists():
                    continue  # its adapter is in the bank
                raise Violation(f"{path} was finished and is gone")
            if now[path].data != before.data:
                raise Violation(f"{path} was finished and is changed")
            if now[path].stamp != before.stamp:
                if before.settled:
                    raise Violation(f"{path} was finished and has been made again")
                self.stored_again += path.suffix == ".safetensors"
        self.seen = now


def finished_files(folder: Path) -> list[Path]:
    """List what a run has finished: adapters of anchors and users, the bank if it is whole, answers."""
    bank = folder / "bank"
    found = [*bank.glob("work/*/*.safetensors"), *folder.glob("adapters/*/*.safetensors")]
    found += [path for path in bank.glob("*.*") if (bank / "bank.json").exists() and not path.name.startswith(".")]
    return [*found, *folder.glob("predictions/*.json")]


def stamp_of(path: Path) -> tuple[int, int]:
    """Return what tells a file from one that was made in its place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def is_settled(path: Path) -> bool:
    """Say whether a finished file needs no more writing: an adapter once a checkpoint after it says so."""
    if path.parent.name == "predictions":
        return False
    plan, checkpoint = path.parent / PLAN, path.parent / CHECKPOINT
    jobs = read_json(plan)["jobs"] if plan.exists() else []
    done = json.loads(load_tensors(checkpoint)[1]["state"])["finished"] if checkpoint.exists() else []
    return path.stem not in {safe_name(job) for job in jobs if job not in done}


# the parts --------------------------------------------------------------------------------------------------------


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


SMALL_DISKS_KIB = (40, 120, 200, 300, 400, 600)


def full_disks(processes: ForkServerContext, work: Path, wanted: dict[str, Any], count: int) -> dict[str, Any]:
    """Run where there is no room, then make room and run on; takes the `count` smallest disks."""
    place = work / "small disk"
    place.mkdir()
    full = went_on = 0
    sizes = SMALL_DISKS_KIB[:count]
    for kilobytes in sizes:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command).returncode:
            return {"skipped": "no file system can be mounted here; it takes root"}
        try:
            was_full = fills_up(processes, place / "run", f"a disk of {kilobytes} KiB")
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            child, _ = start(processes, place / "run")
            child.join(LONGEST_LIFE_S)
            if child.exitcode != 0:
                raise Violation(f"with room again the run ended with exit code {child.exitcode}")
            require_same(result_of(place / "run"), wanted, f"after a full disk of {kilobytes} KiB")
            full, went_on = full + was_full, went_on + was_full
        finally:
            subprocess.run(["umount", place], check=True)
    if not full:
        raise Violation(f"no disk was full, not even one of {SMALL_DISKS_KIB[0]} KiB")
    return {"disks": len(sizes), "runs that met a full disk": full, "runs that went on with room": went_on}


def fills_up(processes: ForkServerContext, folder: Path, where: str) -> bool:
    """Start a run on a small disk; return whether the disk was full."""
    child, stages = start(processes, folder)
    child.join(LONGEST_LIFE_S)
    if folder.exists():
        require_whole(folder, f"on {where}")
    if child.exitcode == 0:
        return False
    told = last_told(stages)
    if child.exitcode != REFUSED or "No space left" not in told:
        raise Violation(f"on {where} a run ended with exit code {child.exitcode} ({told})")
    return True


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


FINISHED = "a finished run"
CACHE = Path("cache") / "vectors.sqlite"
ONLY_FOR_A_REMARK = "scores.json"
"""The call reads in it which rows an earlier table had, to say which are gone, and writes it anew from the answers."""


def damaged_files(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Damage one file of finished or unfinished work at a time, make the same call again, and count what became of it.

    What the call has noticed is known from its error and its log, which must name the file; what it has read, from the
    operating system. Damage that it has read and not noticed must be in nothing that counts: the file is read as the
    sound one, or a cache only lacks vectors, which are made when they are asked for.
    """
    if not hasattr(ctypes.CDLL(None), "inotify_init1"):
        return {"skipped": "which files a call reads is asked of inotify, which this system does not have"}
    draw, tried, outcomes = random.Random(seed), Counter[str](), dict[str, Counter[str]]()
    states = [work / "states" / name for name in (FINISHED, "adaptation cut off", "bank training cut off")]
    for state in states:
        make_state(state, sound=work / "undisturbed")
    files = [(state, path.relative_to(state)) for state in states for path in sorted(state.rglob("*.*"))]
    files = [(state, name) for state, name in files if (state / name).is_file()]
    first = [(state, name) for state, name in files if name == CACHE or name.name == CHECKPOINT]
    for state, name in [*first, *(draw.choice(files) for _ in range(count))][:count]:
        folder = work / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(state, folder)
        how = damage(folder / name, draw)
        tried[how] += 1
        what = f"after damage ({how}) to {name} of {state.name}"
        outcome = after_damage(folder, name, state, sound=work / "undisturbed", what=what)
        outcomes.setdefault(outcome, Counter())[name.name] += 1
    return {"damaged": dict(tried), **{outcome: dict(found) for outcome, found in sorted(outcomes.items())}}


def make_state(state: Path, *, sound: Path) -> None:
    """Make a run, finished or cut off in the middle of a stage, and its cache; undamaged, it must go on to the end."""
    cut_off = state.name.removesuffix(" cut off")

    @contextmanager
    def progress(stage: str) -> Iterator[Step]:
        def step(done: int, total: int) -> None:
            if stage == cut_off and done > 0.7 * total:
                raise CutOff

        yield step

    with contextlib.suppress(CutOff):
        call_again(state, progress)
    if state.name != FINISHED and not list(state.rglob(CHECKPOINT)):
        raise SystemExit(f"there is no checkpoint of {cut_off}")
    whole = Path(shutil.copytree(state, state.with_name("whole")))
    refusal, said = call_again(whole)
    if refusal or str(whole) in said:
        raise Violation(f"{state.name}, undamaged, is not gone on with quietly: {refusal or said}")
    require_same(result_of(whole / "run"), result_of(sound), f"{state.name}, undamaged")
    shutil.rmtree(whole)


class CutOff(Exception):
    """Stands for a kill: nothing after it runs."""


def call_again(folder: Path, progress: Progress = silent) -> tuple[MtaError | None, str]:
    """Run in a folder with a cache of its own; returns the error that refused it, and what the log and stderr say."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("mta").addHandler(handler)
    try:
        with mock.patch.dict(os.environ, MTA_CACHE=str(folder / "cache")), contextlib.redirect_stderr(heard):
            run(*people(), CONFIG, folder / "run", progress=progress)
    except MtaError as error:
        return error, heard.getvalue()
    finally:
        logging.getLogger("mta").removeHandler(handler)
    return None, heard.getvalue()


def after_damage(folder: Path, name: Path, state: Path, *, sound: Path, what: str) -> str:
    """Make the call again in a copy of `state` with one damaged file, and say what became of that."""
    path = folder / name
    damaged, alike = path.read_bytes(), reads_alike(path, state / name)
    try:
        with first_touches(folder) as touched:
            refusal, said = call_again(folder)
        if refusal:
            if str(path) not in str(refusal):
                raise Violation(f"{what}: the error does not name it: {refusal}")
            path.unlink()
            call_again(folder)
        require_close(folder / "run", sound, what)
    except Exception as error:
        raise Violation(f"{what}: {type(error).__name__}: {error}") from error
    made_again = not path.exists() or path.read_bytes() != damaged
    if refusal:
        return "refused by name, gone on with when it was removed"
    if str(path) in said:
        return "named and made again" if made_again else "named and gone on without"
    if touched.get(path) != "opened":
        return "not read, written anew" if made_again else "not read"
    if alike:
        return "read as if undamaged"
    if name == CACHE:
        return missing_vectors(path, state / name, what)
    if name.name == ONLY_FOR_A_REMARK and made_again:
        return "read for a remark only, written anew"
    raise Violation(f"{what}: it was read, and nothing was said")


def reads_alike(path: Path, sound: Path) -> bool:
    """Say whether a damaged file is read as the sound one: the change is in nothing that counts, as 1e-5 and 1E-5."""
    try:
        return bool(read_as(path, sound) == read_as(sound, sound))
    except MtaError:
        return False


def read_as(path: Path, sound: Path) -> Any:
    """Return what a file holds; of a cache the vectors that are also in the sound one."""
    if path.name == CACHE.name:
        return vectors_in(path, sound)
    if path.suffix in (".safetensors", Path(CHECKPOINT).suffix):
        tensors, notes = load_tensors(path)
        return tensors_checksum(tensors), notes.get("note"), notes.get("state")  # the checksum's name may be damaged
    if path.suffix == ".json":
        value = read_json(path)
        return {key: value.get(key) for key in read_json(sound) if key != SEAL} if isinstance(value, dict) else value
    return path.read_bytes()


def vectors_in(path: Path, sound: Path) -> dict[bytes, bytes]:
    """Return the vectors that a cache gives for the keys of a sound one."""
    with contextlib.closing(sqlite3.connect(f"file:{sound}?immutable=1", uri=True)) as connection:
        sizes = {key: len(vector) // 4 for key, vector in connection.execute("SELECT key, vector FROM vectors")}
    found: dict[bytes, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as temporary:
        copied = VectorCache(Path(shutil.copy(path, temporary)))  # to open one may change it
        for key, size in sizes.items():
            with contextlib.suppress(StorageError):  # of a damaged page; the others can be read
                found |= copied.read([key], dimensions=size)
    return {key: vector.numpy().tobytes() for key, vector in found.items()}


def missing_vectors(path: Path, sound: Path, what: str) -> str:
    """Say what became of vectors that a damaged cache does not have any more, which is nothing amiss in a cache."""
    wanted, found = vectors_in(sound, sound), vectors_in(path, sound)
    if not found.items() <= wanted.items():
        raise Violation(f"{what}: it holds vectors of other values")
    return "vectors missing, made again" if found == wanted else "vectors missing, not asked for"


OPENED, REPLACED, LOST = 0x20, 0x80, 0x4000
"""IN_OPEN, IN_MOVED_TO and IN_Q_OVERFLOW of inotify."""


@contextmanager
def first_touches(folder: Path) -> Iterator[dict[Path, str]]:
    """Ask the operating system what happens first to each file below a folder: it is opened, or replaced unread.

    Yields:
        Path -> "opened" or "replaced", filled when the block ends.
    """
    touched: dict[Path, str] = {}
    system = ctypes.CDLL(None, use_errno=True)
    descriptor = system.inotify_init1(os.O_NONBLOCK)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    places = {system.inotify_add_watch(descriptor, os.fsencode(one), OPENED | REPLACED): one for one in folders}
    try:
        yield touched
        events = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                events += os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)
    while events:
        place, mask, _, length = struct.unpack_from("iIII", events)
        if mask & LOST:
            raise SystemExit("inotify has lost events")
        name, events = events[16 : 16 + length].rstrip(b"\0"), events[16 + length :]
        touched.setdefault(places[place] / os.fsdecode(name), "opened" if mask & OPENED else "replaced")


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
    logging.getLogger("mta").addHandler(logging.NullHandler())
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mta.evaluation.run", "mta.tiny_model", "sklearn.cluster", "bm25s"])
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["MTA_CACHE"] = str(work / "cache")
        wanted, _ = undisturbed(processes, work)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "runs": lambda: killed_runs(processes, work, options.kills, options.seed),
            "writes": lambda: killed_writes(processes, work, options.kills, options.seed),
            "disk": lambda: full_disks(processes, work, wanted, max(2, options.kills // 30)),
            "damage": lambda: damaged_files(work, options.kills, options.seed),
            "fuzz": lambda: fuzzed_readers(work, 50 * options.kills, options.seed),
            "two": lambda: two_at_once(processes, work, wanted, max(1, options.kills // 20)),
        }
        out = options.out / "faults.json" if options.out else None
        done = {name: parts[name]() for name in options.only or PARTS}
        found = read_json(out) if out and out.exists() else {}  # another process may have written
        found |= {"seed": options.seed, **done}
    rows = [(name, what, json.dumps(count)) for name in PARTS if name in found for what, count in found[name].items()]
    untried = [name for name in PARTS if name not in found or "skipped" in found[name]]
    left_out = f" Not tried: {', '.join(untried)}." if untried else ""
    page = f"{table(['part', 'what', 'how often'], rows)}\n\nLost or damaged: nothing.{left_out}"
    write(out, found, page)


if __name__ == "__main__":
    main()
