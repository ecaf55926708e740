"""What keeping people's adapters costs: bytes for each, and how many are written and read in a second.

    python benchmarks/store.py --folder DIR --out docs/results/speed [--users 100000]

- Bytes: of a flat record in bfloat16 and int8, from the shapes of SmolLM2-135M and Llama-3-8B, for MTA's own part
  (rank 4, beside a bank that all share), the same on q and v alone, a core inside two merged anchors of rank 8, and
  OPPU's adapter (rank 8); a merged-only user is anchor names and weights.
- Files: one a user with its checksum, in one folder, as a training leaves them (`adapter_path`): at SmolLM2-135M's
  shape, and at a tiny shape for large numbers of users, where the files themselves are what costs.
- Records: made and read back in memory; and through the user store on SQLite with cores at SmolLM2-135M's shape, each
  a transaction that is flushed to the disk; of more people, and of PostgreSQL, see `serve_store.py`.

Reading picks 1,000 users at random, by name, of whom the system may hold much in its memory. What takes less than a
minute is done several times. Results are written as they come, and a stopped call goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from measuring import LONG_S, powers_of_ten, run, table, tell, watched, write
from mta.adapter_files import load_trained, save_trained
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE
from mta.files import make_folder, read_json, write_json
from mta.flat_records import Numbers, Schema, read_record, schema_of, write_record
from mta.lora.core import CHANGE
from mta.lora.stacked import Shapes
from mta.merging import Match
from mta.serving.database import open_database
from mta.serving.tenants import add_tenant
from mta.serving.user_store import Revision, RevisionHead, UserStore
from mta.training_store import adapter_path

T = TypeVar("T")
LLAMA_3_8B = {
    "q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336),
}  # fmt: skip
LLAMA_LAYERS = 32
READS = 1000
STORED = 10_000
"""Most users in one user store."""
FORMATS: tuple[Numbers, ...] = ("bfloat16", "int8")
MATCH = Match("", ("anchor 1", "anchor 2"), (0.6, 0.4), (0.6, 0.4))


# what is kept -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """One form of a user's own part."""

    targets: tuple[str, ...]
    rank: int = 0
    """Of an adapter; 0: none."""
    core: int = 0
    """Ranks of the composition that a core lies in; 0: none."""

    def shapes(self, linears: Shapes) -> dict[str, tuple[int, int]]:
        """Return the tensors by name, from the linear layers of the base model."""
        found: dict[str, tuple[int, int]] = {}
        for name, (d_out, d_in) in linears.items():
            if self.rank:
                found |= {f"{name}.A": (self.rank, d_in), f"{name}.B": (d_out, self.rank)}
            if self.core:
                found[f"{name}{CHANGE}"] = (self.core, self.core)
        return found


KINDS: Mapping[str, Kind] = {
    "MTA, rank 4": Kind(ALL_LINEAR, rank=4),
    "MTA, rank 4, q and v": Kind(QUERY_VALUE, rank=4),
    "MTA, core": Kind(ALL_LINEAR, core=16),
    "OPPU, rank 8": Kind(ALL_LINEAR, rank=8),
}
SMALL, MANY = "MTA, core", "MTA, rank 4"
"""Kinds that the user store and the folder of files are filled with."""


def record_bytes(linears: Shapes, kind: str, numbers: Numbers) -> int:
    """Return the bytes of one user's flat record."""
    wanted = {name: shape for name, shape in linears.items() if name.endswith(KINDS[kind].targets)}
    return Schema("", numbers, KINDS[kind].shapes(wanted)).record_bytes


def bytes_per_user(base: BaseModel) -> list[dict[str, object]]:
    """Return a row for each kind."""
    llama = {f"{layer}.{name}": shape for layer in range(LLAMA_LAYERS) for name, shape in LLAMA_3_8B.items()}
    models: Mapping[str, Shapes] = {base.name: base.shapes(ALL_LINEAR), "Llama-3-8B": llama}
    columns = [(f"{name}, {numbers}", linears, numbers) for name, linears in models.items() for numbers in FORMATS]
    return [
        {"kind": kind, **{name: record_bytes(linears, kind, numbers) for name, linears, numbers in columns}}
        for kind in KINDS
    ]


# writing and reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What is written and read, and where."""

    place: str
    """One of `PLACES`."""
    base: BaseModel
    kind: str
    numbers: Numbers
    users: int

    def what(self) -> dict[str, Any]:
        """Return what tells this piece from the others."""
        shown = {"place": self.place, "base": self.base.name, "kind": self.kind, "numbers": self.numbers}
        return {**shown, "users": self.users}

    def drawn(self) -> tuple[dict[str, Tensor], Schema]:
        """Draw one user's part, with the schema of its record."""
        shapes = KINDS[self.kind].shapes(self.base.shapes(KINDS[self.kind].targets))
        tensors = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
        return tensors, schema_of(tensors, base_fingerprint=self.base.fingerprint, numbers=self.numbers)


@dataclass(frozen=True, slots=True)
class Turn:
    """One time through."""

    written: list[float]
    """Seconds of each write."""
    read: list[float]
    """Seconds of each read."""
    bytes: int
    """Kept of a user."""


def through_files(work: Work, folder: Path) -> Turn:
    """Write a file for each user and read some of them."""
    one, paths = work.drawn()[0], [adapter_path(folder, name) for name in names(work.users)]
    written = seconds(lambda path: save_trained(path, one, base=work.base, note={}), paths)
    read = seconds(lambda path: load_trained(path, base=work.base), some(paths))
    return Turn(written, read, paths[0].stat().st_size)


def through_memory(work: Work, _: Path) -> Turn:
    """Make records and read them back."""
    one, schema = work.drawn()
    record = write_record(one, schema)
    written = seconds(lambda _: write_record(one, schema), range(work.users))
    return Turn(written, seconds(lambda _: read_record(record, schema), range(work.users)), len(record))


def through_store(work: Work, folder: Path) -> Turn:
    """Keep an adapter of each user in a user store, and load some by name."""
    one, schema = work.drawn()
    revision = Revision(RevisionHead(match=MATCH, bank="0" * 64, items=4), one)
    database = open_database(f"sqlite:///{folder / 'users.db'}")
    try:
        store, tenant = UserStore(database), add_tenant(database, "everybody")
        known = [store.create_user(tenant, name) for name in names(work.users)]
        written = seconds(lambda user: store.save_revision(user, revision, schema), known)
        read = seconds(lambda user: store.load_revision(store.find_user(tenant, user.name)), some(known))
    finally:
        database.close()
    return Turn(written, read, sum(path.stat().st_size for path in folder.iterdir()) // work.users)


FILE, MEMORY, STORE = "file", "record in memory", "user store"
PLACES: Mapping[str, Callable[[Work, Path], Turn]] = {
    FILE: through_files,
    MEMORY: through_memory,
    STORE: through_store,
}


def names(users: int) -> list[str]:
    """Return the users' ids."""
    return [f"user {number}" for number in range(users)]


def some(items: Sequence[T]) -> list[T]:
    """Draw those who are read."""
    return random.Random(0).choices(items, k=min(READS, 10 * len(items)))


def seconds(work: Callable[[T], object], items: Iterable[T]) -> list[float]:
    """Return what each item took."""
    found = []
    for item in items:
        started = time.perf_counter()
        work(item)
        found.append(time.perf_counter() - started)
    return found


# all of it --------------------------------------------------------------------------------------------------------


def works(options: argparse.Namespace) -> Iterator[Work]:
    """Return everything that is measured."""
    real, tiny = load_base_model(options.base), load_base_model("tiny-random")
    for kind in KINDS:
        yield Work(FILE, real, kind, "bfloat16", options.real_users)
        for numbers in FORMATS:
            yield Work(MEMORY, real, kind, numbers, options.real_users)
    for users in powers_of_ten(1000, options.users):
        yield Work(FILE, tiny, MANY, "bfloat16", users)
        if users <= STORED:
            yield Work(STORE, real, SMALL, "bfloat16", users)
    yield Work(STORE, real, SMALL, "int8", min(1000, options.users))  # what it costs does not depend on their number


def measure(work: Work, folder: Path, repeats: int) -> dict[str, Any]:
    """Do a piece of work as often as asked for, once where it takes long; take everything away again."""
    turns: list[Turn] = []
    started = time.perf_counter()
    while len(turns) < repeats and (not turns or time.perf_counter() - started < LONG_S * len(turns)):
        folder.mkdir(parents=True)
        try:
            turns.append(PLACES[work.place](work, folder))
        finally:
            shutil.rmtree(folder)
    return {
        **work.what(),
        "repeats": len(turns),
        "bytes": turns[0].bytes,
        **rates("written", [turn.written for turn in turns]),
        **rates("read", [turn.read for turn in turns]),
    }


def rates(what: str, turns: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return how many a second, the least and most of all turns, and what one takes at the median and at 95 of 100."""
    found = [len(turn) / sum(turn) for turn in turns]
    marks = statistics.quantiles([one for turn in turns for one in turn], n=20)
    return {
        f"{what}_per_s": round(statistics.median(found), 1),
        f"{what}_per_s_min": round(min(found), 1),
        f"{what}_per_s_max": round(max(found), 1),
        f"{what}_p50_ms": round(1000 * marks[9], 3),
        f"{what}_p95_ms": round(1000 * marks[18], 3),
    }


def page_of(per_user: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> str:
    """Return both tables as Markdown."""
    plain = [[one["kind"], *(f"{size:,}" for name, size in one.items() if name != "kind")] for one in per_user]
    head = ["where", "base", "kind", "numbers", "users", "repeats", "bytes a user", "written/s", "read/s"]
    rows = [
        [one[key] for key in ("place", "base", "kind", "numbers", "users", "repeats", "bytes")]
        + [_range(one, "written"), _range(one, "read"), one["read_p50_ms"], one["read_p95_ms"]]
        for one in found
    ]
    shown = table([*head, "read p50, ms", "read p95, ms"], rows)
    return (
        f"### Bytes of a user's flat record\n\n{table(list(per_user[0]), plain)}\n\n### Writing and reading\n\n{shown}"
    )


def _range(one: Mapping[str, Any], what: str) -> str:
    return f"{one[f'{what}_per_s']} ({one[f'{what}_per_s_min']} - {one[f'{what}_per_s_max']})"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured; a folder in it is made")
    parser.add_argument("--users", type=int, default=100_000, help="most users in one folder")
    parser.add_argument("--real-users", type=int, default=500, help="users at the base model's shape")
    parser.add_argument("--repeats", type=int, default=3, help="of what takes less than a minute")
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    folder = options.folder / f"store-{os.getpid()}"
    per_user = bytes_per_user(load_base_model(options.base))
    out = options.out / "store.json" if options.out else None
    found: list[dict[str, Any]] = read_json(out)["measured"] if out and out.exists() else []
    for work in works(options):
        if any(work.what() == {key: one[key] for key in work.what()} for one in found):
            continue
        one, where = watched(partial(measure, work, folder, options.repeats), anyway=options.anyway)
        found.append({**one, "machine": where})
        tell(f"{work.what()}: written {_range(one, 'written')}, read {_range(one, 'read')} a second")
        if out:
            write_json(make_folder(out.parent) / out.name, {"measured": found})
    page = page_of(per_user, found)
    write(out, {"bytes": per_user, "measured": found, "machine": found[-1]["machine"]}, page)


if __name__ == "__main__":
    run(main)
