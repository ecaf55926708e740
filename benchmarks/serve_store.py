"""A user store with very many people: what one costs to write, to read and to keep, in SQLite and PostgreSQL.

    python benchmarks/serve_store.py --out docs/results/serving [--people 100000] [--store sqlite]

Everybody has a short history, a vector with two matched anchors, and an adapter in a compact form (a 4 x 4 core for
each linear layer of SmolLM2-135M's shape, in bfloat16), written the way the server writes them, a transaction each.
Then random people are read as a request reads them: by name with the head of their adapter, and with all of it where it
is not in memory. Sizes are those of the database's own files. PostgreSQL is started here, in a folder of its own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import table, watched, write
from mta.flat_records import schema_of
from mta.merging import Match
from mta.records import HistoryItem
from mta.serving.database import Database, open_database
from mta.serving.tenants import ensure_tenant
from mta.serving.user_store import Revision, RevisionHead, StoredMatch, UserStore
from postgres_server import PostgresServer, missing

LAYERS, MODULES, CORE, DIMENSIONS, ITEMS = 30, 7, 4, 384, 10
BANK = "0" * 64
READS = 5000


@contextmanager
def stores(kind: str) -> Iterator[tuple[Database, Callable[[], int]]]:
    """Yield a new store, and what tells the bytes of its files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if kind == "sqlite":
            database = open_database(f"sqlite:///{folder / 'users.db'}")
            yield database, lambda: sum(path.stat().st_size for path in folder.glob("users.db*"))
            database.close()
            return
        if reason := missing():
            raise SystemExit(reason)
        server = PostgresServer(folder / "postgres")
        server.start()
        database = open_database(server.create("people"))

        def size() -> int:
            with database.reading() as connection:
                return int(connection.exec_driver_sql("SELECT pg_database_size('people')").scalar_one())

        yield database, size
        database.close()
        server.stop("fast")


def fill(store: UserStore, people: int) -> dict[str, float]:
    """Write everybody; return milliseconds a person of each kind of write."""
    tenant = ensure_tenant(store.database, "default")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{layer}.{module}.C": torch.randn(CORE, CORE, generator=generator).bfloat16()
        for layer in range(LAYERS)
        for module in range(MODULES)
    }
    schema = schema_of(tensors, base_fingerprint="ab" * 32, numbers="bfloat16")
    text = "a sentence of about as many characters as one has that a person might have written somewhere " * 2
    history = [HistoryItem(f"i{n}", {"input": text, "output": "a tag"}) for n in range(ITEMS)]
    match = Match("", ("anchor-3", "anchor-7"), (0.8, 0.7), (0.55, 0.45))
    spent = dict.fromkeys(("create", "history", "match", "adapter"), 0.0)
    for number in range(people):
        started = time.perf_counter()
        user = store.create_user(tenant, name_of(number))
        created = time.perf_counter()
        store.append_history(user, history)
        appended = time.perf_counter()
        store.save_match(user, StoredMatch(match, torch.randn(DIMENSIONS, generator=generator), BANK, ITEMS))
        matched = time.perf_counter()
        store.save_revision(user, Revision(RevisionHead(match=match, bank=BANK, items=ITEMS), tensors), schema)
        times = (created - started, appended - created, matched - appended, time.perf_counter() - matched)
        for name, seconds in zip(spent, times, strict=True):
            spent[name] += seconds
        if (number + 1) % 10_000 == 0:
            print(f"{number + 1} of {people} people", flush=True)
    return {f"{name}, ms": round(1e3 * seconds / people, 3) for name, seconds in spent.items()}


def name_of(number: int) -> str:
    """Return a person's name; names in order are not people in order."""
    return f"{(number * 2654435761) % 2**32:08x}-{number}"


def read(store: UserStore, people: int) -> dict[str, float]:
    """Read random people; return milliseconds at the middle and at the 95th percentile."""
    tenant, draw = ensure_tenant(store.database, "default"), random.Random(1)
    by_name: list[float] = []
    whole: list[float] = []
    for _ in range(READS):
        name = name_of(draw.randrange(people))
        started = time.perf_counter()
        user = store.find_user(tenant, name)
        store.load_head(user)
        by_name.append(time.perf_counter() - started)
        started = time.perf_counter()
        if store.load_revision(user) is None:
            raise SystemExit(f"{name} has no adapter")
        whole.append(time.perf_counter() - started)
    return {
        f"{what}, {label} ms": round(1e3 * float(np.quantile(found, share)), 3)
        for what, found in (("person and head", by_name), ("adapter", whole))
        for label, share in (("p50", 0.5), ("p95", 0.95))
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a store and read from it."""
    with stores(options.store) as (database, size):
        store = UserStore(database)
        empty = size()
        written = fill(store, options.people)
        return {
            "store": options.store,
            "people": options.people,
            "history items": ITEMS,
            "adapter values": LAYERS * MODULES * CORE**2,
            **written,
            **read(store, options.people),
            "bytes per person": round((size() - empty) / options.people),
        }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    found, where = watched(lambda: measure(options), anyway=options.anyway)
    page = f"### {options.people} people in {options.store}\n\n{table(['', ''], list(found.items()))}"
    out = options.out / f"store-{options.store}-{options.people}.json" if options.out else None
    write(out, {**found, "machine": where}, page)


if __name__ == "__main__":
    main()
