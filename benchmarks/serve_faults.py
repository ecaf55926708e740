"""A server killed on purpose: while histories are written, adapters trained, and new ones swapped in.

    python benchmarks/serve_faults.py --out docs/results/reliability [--kills 50] [--store sqlite] [--seed 0]

`mta serve` runs in a process of its own, over a tiny random model and an invented bank. In every life some threads
append history items, order adaptations and ask questions, all over HTTP, and note what was acknowledged, until SIGKILL
at a random moment. Then:

- every acknowledged item must be there, once, word for word, and nobody may have items that were never sent;
- nobody's revision may be lower than one that was seen, and every stored adapter must be whole;
- the same question to the same revision of a person must get the same answer, in whatever life;
- answers meanwhile must be 200, or what the server says when it is overloaded; nothing else;
- in the end, after a life that nobody disturbs, every acknowledged adaptation must be done.

With --store postgresql (which is started here, in a folder of its own) the database is also stopped hard and started
again in every second life, while the server runs; requests may then get 503. Any violation ends the script.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fault_lives import CONFIG, Violation
from measuring import table, write
from mta.bank_building import Encoders, build_bank
from mta.base_model import load_base_model
from mta.data.personas import make_pool_and_targets
from mta.encoders import load_encoder
from mta.serving.database import open_database
from mta.serving.tenants import find_tenant
from mta.serving.user_store import UserStore
from mta.tasks import get_task
from postgres_server import PostgresServer, missing
from server_process import ServerProcess

PEOPLE = tuple(f"person-{number}" for number in range(6))
LIFE_S = (0.2, 4.0)
"""Seconds from readiness to the kill."""
OUTAGE_S = (0.1, 0.8)
END_S = 300.0
WORKING, OVERLOADED, OUT_OF_REACH = (200, 201, 202), 429, 503


@dataclass(slots=True)
class Known:
    """What the server has acknowledged, or told, in all lives."""

    items: dict[str, dict[str, dict[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    """Person -> id of an acknowledged item -> its fields."""
    sent: dict[str, dict[str, dict[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    """The same of all items sent, acknowledged or not."""
    revisions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    jobs: list[str] = field(default_factory=list)
    answers: dict[tuple[str, int], str] = field(default_factory=dict)
    """(person, revision) -> what it answers the question with."""
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Life:
    """Threads that use a server until it is gone."""

    def __init__(self, address: str, known: Known, question: str, item: Callable[[int], dict[str, str]]) -> None:
        self.address, self.known, self.question, self.item = address, known, question, item
        self.outages = False
        """Whether the database may be out of reach."""
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._use, args=(work,))
            for work in (self._append, self._append, self._adapt, self._ask, self._ask)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Return when all threads have noticed that the server is gone."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _use(self, work: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(base_url=self.address, timeout=60) as client:
            while not self._over.is_set():
                try:
                    work(client)
                except httpx.TransportError:
                    return
                except Violation as violation:
                    self.known.violations.append(str(violation))
                    return

    def _told(self, what: str, answer: httpx.Response) -> bool:
        """Count an answer; return whether the server did what was asked."""
        self.known.counts[f"{what}: {answer.status_code}"] += 1
        allowed = (*WORKING, OVERLOADED, *((OUT_OF_REACH,) if self.outages else ()))
        if answer.status_code not in allowed:
            raise Violation(f"{what} got {answer.status_code}: {answer.text[:300]}")
        return answer.status_code in WORKING

    def _append(self, client: httpx.Client) -> None:
        person, number = random.choice(PEOPLE), random.getrandbits(48)
        item_id, fields = f"item-{number}", self.item(number)
        self.known.sent[person][item_id] = fields
        answer = client.post(f"/v1/users/{person}/history", json={"items": [{"id": item_id, "fields": fields}]})
        if self._told("items", answer):
            self.known.items[person][item_id] = fields
        time.sleep(0.02)

    def _adapt(self, client: httpx.Client) -> None:
        people = random.sample(PEOPLE, 2)
        answer = client.post("/v1/adapt", json={"users": people})
        if self._told("adaptations", answer):
            self.known.jobs.append(answer.json()["id"])
        time.sleep(1.0)

    def _ask(self, client: httpx.Client) -> None:
        person = random.choice(PEOPLE)
        body = {"user": person, "messages": [{"role": "user", "content": self.question}], "max_tokens": 6}
        answer = client.post("/v1/chat/completions", json=body)
        if not self._told("answers", answer):
            return
        found = answer.json()
        if (revision := found["mta"]["revision"]) is None:
            return
        self.known.revisions[person] = max(self.known.revisions[person], revision)
        text = found["choices"][0]["message"]["content"]
        if self.known.answers.setdefault((person, revision), text) != text:
            raise Violation(f"revision {revision} of {person} answered {text!r} and before otherwise")


def require_kept(url: str, known: Known) -> None:
    """Refuse a store that has lost or damaged something."""
    database = open_database(url)
    try:
        store, tenant = UserStore(database), find_tenant(database, "default")
        for person in PEOPLE:
            user = store.find_user(tenant, person)
            history = store.history(user)
            kept = {item.item_id: dict(item.fields) for item in history}
            if len(kept) != len(history) or user.items != len(history):
                raise Violation(f"{person} has {user.items} items, {len(history)} of them there, {len(kept)} ids")
            for item_id, fields in known.items[person].items():
                if kept.get(item_id) != fields:
                    raise Violation(f"item {item_id} of {person} was acknowledged and is {kept.get(item_id)}")
            for item_id, fields in kept.items():
                if known.sent[person].get(item_id, fields) != fields:
                    raise Violation(f"item {item_id} of {person} is not what was sent")
            if user.revision < known.revisions[person]:
                raise Violation(f"{person} had revision {known.revisions[person]} and has {user.revision}")
            if (store.load_revision(user) is None) != (user.revision == 0):  # a damaged one raises
                raise Violation(f"{person} should have an adapter of revision {user.revision}, and has none")
            known.counts["adapters read whole"] += user.revision > 0
    finally:
        database.close()


def end_all_jobs(address: str, known: Known) -> None:
    """Return when every acknowledged adaptation is done."""
    until = time.monotonic() + END_S
    with httpx.Client(base_url=address, timeout=60) as client:
        for job_id in known.jobs:
            while (state := client.get(f"/v1/jobs/{job_id}").json())["state"] not in ("done", "failed"):
                if time.monotonic() > until:
                    raise Violation(f"job {job_id} does not end: {state}")
                time.sleep(0.2)
            if state["state"] == "failed":
                raise Violation(f"job {job_id} failed: {state}")
            known.counts["jobs done"] += 1


@contextmanager
def stores(kind: str, folder: Path) -> Iterator[tuple[str, PostgresServer | None]]:
    """Yield the URL of a new store, and its server if it has one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'users.db'}", None
        return
    if reason := missing():
        raise SystemExit(reason)
    server = PostgresServer(folder / "postgres")
    server.start()
    try:
        yield server.create("faults"), server
    finally:
        server.stop()


def set_up(folder: Path) -> tuple[Path, str, Callable[[int], dict[str, str]]]:
    """Write a bank; return its folder, a question, and what makes items."""
    pool, targets = make_pool_and_targets(
        CONFIG.task_id, pool=6, targets=1, pool_history=(5, 7), target_history=(4, 5), target_queries=1, seed=0
    )
    base = load_base_model(CONFIG.base)
    encoder = load_encoder(CONFIG.bank.match.encoder, device=base.device)
    encoders = Encoders(encoder, encoder)
    task = get_task(CONFIG.task_id)
    bank = folder / "bank"
    build_bank(list(pool.users), task, base, bank, config=CONFIG.bank, encoders=encoders, engine=CONFIG.engine)
    target = targets.users[0]
    like = dict(target.history[0].fields)
    longest = max(like, key=lambda name: len(like[name]))
    return bank, target.queries[0].text, lambda number: {**like, longest: f"{like[longest]} {number}"}


def suffer(kills: int, store: str, seed: int) -> dict[str, Any]:
    """Kill a server again and again; return what was counted."""
    random.seed(seed)
    known = Known()
    with tempfile.TemporaryDirectory() as temporary, stores(store, Path(temporary)) as (url, postgres):
        folder = Path(temporary)
        bank, question, item = set_up(folder)
        options = ["--bank", bank, "--store", url, "--no-playground", "--most-history", 10**6, "--threads", 1]
        options += ["--adapt-max-items", 4, "--adapt-epochs", 1, "--adapt-patience-s", 0.02]  # many fit into a life
        for number in range(kills + 1):
            server = ServerProcess(options, folder)
            server.wait()
            if number == 0:
                create_people(server.address, known, item)
            if number == kills:
                with server:
                    end_all_jobs(server.address, known)
                break
            life = Life(server.address, known, question, item)
            life.outages = postgres is not None and number % 2 == 1
            life.start()
            if postgres and life.outages:
                interrupt(postgres, known)
            time.sleep(random.uniform(*LIFE_S))
            server.kill()
            life.end()
            known.counts["kills"] += 1
            if known.violations:
                raise Violation("; ".join(known.violations))
            require_kept(url, known)
            print(f"{number + 1} of {kills} kills: {dict(known.counts)}", flush=True)
        require_kept(url, known)
    return dict(sorted(known.counts.items()))


def create_people(address: str, known: Known, item: Callable[[int], dict[str, str]]) -> None:
    """Create everybody with some items."""
    with httpx.Client(base_url=address, timeout=60) as client:
        for person in PEOPLE:
            items = {f"first-{number}": item(number) for number in range(4)}
            history = [{"id": item_id, "fields": fields} for item_id, fields in items.items()]
            client.post("/v1/users", json={"id": person, "history": history}).raise_for_status()
            known.items[person] |= items
            known.sent[person] |= items


def interrupt(postgres: PostgresServer, known: Known) -> None:
    """Stop the database as if it had crashed, and start it again."""
    time.sleep(random.uniform(*OUTAGE_S))
    postgres.stop("immediate")
    time.sleep(random.uniform(*OUTAGE_S))
    postgres.start()
    known.counts["outages of the database"] += 1


def main() -> None:
    """Do it and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    counts = suffer(options.kills, options.store, options.seed)
    told = table(["what", "how often"], list(counts.items()))
    page = f"### Server over {options.store}\n\n{told}\n\nLost or damaged: nothing."
    out = options.out / f"serving-{options.store}.json" if options.out else None
    write(out, {"store": options.store, "seed": options.seed, "counts": counts}, page)


if __name__ == "__main__":
    main()
