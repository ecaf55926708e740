"""Files of a run whose bits turn or whose ends go: refused by name, or without effect."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import random
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fault_lives import CONFIG, Violation, people, require_close, require_same, result_of
from mta.errors import MtaError, StorageError
from mta.evaluation.run import run
from mta.files import SEAL, read_json
from mta.progress import Progress, Step, silent
from mta.tensor_files import load_tensors, tensors_checksum
from mta.training_store import CHECKPOINT
from mta.vector_cache import VectorCache


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
