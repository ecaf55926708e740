"""The user store: one suite for SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import update

from mta.errors import AdapterError, ConfigError, Conflict, DataError, NotFound, StorageError
from mta.flat_records import Schema, schema_of
from mta.merging import Match
from mta.records import HistoryItem
from mta.serving.database import Database, open_database
from mta.serving.tables import ADAPTERS, API_KEYS, METADATA
from mta.serving.tenants import (
    Tenant,
    add_key,
    add_tenant,
    ensure_tenant,
    find_tenant,
    list_keys,
    revoke_key,
    tenant_of_key,
)
from mta.serving.user_store import Revision, RevisionHead, StoredMatch, UserStore

MATCH = Match("ada", ("anchor-3", "anchor-1"), (0.83, 0.81), (0.506, 0.494))
BANK = "0" * 64


def items(*numbers: int) -> list[HistoryItem]:
    return [
        HistoryItem(str(n), {"input": f"question {n}", "output": f"answer {n}"}, f"2026-01-{n:02}") for n in numbers
    ]


def revision(seed: int = 0) -> tuple[Revision, Schema]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"q.A": torch.randn(4, 9, generator=generator), "q.B": torch.randn(12, 4, generator=generator)}
    made = Revision(RevisionHead(match=MATCH, bank=BANK, items=3, note={"updates": 6}), tensors)
    return made, schema_of(tensors, base_fingerprint="ab" * 32, numbers="float32")


@pytest.fixture
def store(database: Database) -> UserStore:
    return UserStore(database)


@pytest.fixture
def acme(database: Database) -> Tenant:
    return add_tenant(database, "acme")


def test_tables_are_those_of_the_last_migration(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_store_of_an_earlier_form_is_brought_to_this_one(tmp_path: Path) -> None:
    """What an earlier version kept is there, and a match that names its bank alone is told from one made now."""
    url = f"sqlite:///{tmp_path / 'users.db'}"
    database = open_database(url)
    store, tenant = UserStore(database), add_tenant(database, "acme")
    ada = store.create_user(tenant, "ada")
    store.append_history(ada, items(1))
    store.save_match(ada, StoredMatch(MATCH, torch.tensor([0.25, -1.5]), BANK, items=1))
    with database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE matches RENAME COLUMN found_by TO bank")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'first'")
    database.close()
    store = UserStore(open_database(url))
    found = store.load_match(store.find_user(tenant, "ada"))
    assert found is not None
    assert (found.match, found.found_by, found.items) == (MATCH, BANK, 1)
    assert store.history(ada) == tuple(items(1))
    store.database.close()


def test_a_user_s_way(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    assert (ada.items, ada.revision) == (0, 0)
    assert store.load_match(ada) is None
    assert store.load_revision(ada) is None
    assert store.append_history(ada, items(1, 2)) == 2
    assert store.append_history(ada, items(2, 3)) == 1  # 2 is there, word for word
    assert store.history(ada) == tuple(items(1, 2, 3))
    store.save_match(ada, StoredMatch(MATCH, torch.tensor([0.25, -1.5]), BANK, items=3))
    found = store.load_match(ada)
    assert found is not None
    assert (found.match, found.found_by, found.items, found.vector.tolist()) == (MATCH, BANK, 3, [0.25, -1.5])
    made, schema = revision()
    assert store.save_revision(ada, made, schema) == 1
    kept = store.load_revision(ada)
    assert kept is not None
    head = kept.head
    assert (head.number, head.match, head.bank, head.items, head.note) == (1, MATCH, BANK, 3, {"updates": 6})
    assert store.load_head(ada) == head
    assert all(torch.equal(kept.tensors[name], made.tensors[name]) for name in made.tensors)
    assert head.bytes == schema.record_bytes
    again = store.find_user(acme, "ada")
    assert (again.items, again.revision) == (3, 1)


def test_what_was_written_is_there_when_opened_again(url: str) -> None:
    first = UserStore(open_database(url))
    acme = add_tenant(first.database, "acme")
    ada = first.create_user(acme, "ada")
    first.append_history(ada, items(1))
    first.save_revision(ada, *revision())
    first.database.close()
    second = UserStore(open_database(url))
    found = second.find_user(find_tenant(second.database, "acme"), "ada")
    assert second.history(found) == tuple(items(1))
    kept = second.load_revision(found)
    assert kept is not None
    assert kept.head.number == 1
    second.database.close()


def test_a_new_revision_takes_the_place_of_the_earlier_one(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    numbers = [store.save_revision(ada, *revision(seed)) for seed in range(3)]
    assert numbers == [1, 2, 3]
    kept = store.load_revision(ada)
    assert kept is not None
    assert torch.equal(kept.tensors["q.A"], revision(2)[0].tensors["q.A"])
    assert store.audit(ada)["adapter revisions"] == 1


def test_readers_see_whole_revisions_only(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.save_revision(ada, *revision(0))
    over = threading.Event()
    wrong: list[int] = []

    def read() -> int:
        seen = 0
        while not over.is_set():
            kept = store.load_revision(ada)
            assert kept is not None
            if not torch.equal(kept.tensors["q.A"], revision(kept.head.number - 1)[0].tensors["q.A"]):
                wrong.append(kept.head.number)
            seen += 1
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for seed in range(1, 15):
                store.save_revision(ada, *revision(seed))
        finally:
            over.set()
        assert all(reader.result() > 0 for reader in readers)
    assert not wrong


def test_items_keep_their_texts(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.append_history(ada, items(1))
    with pytest.raises(Conflict, match="history item '1' with other texts"):
        store.append_history(ada, [*items(2), HistoryItem("1", {"input": "other", "output": "x"})])
    assert store.history(ada) == tuple(items(1))  # nothing of the refused call
    odd = HistoryItem("ö", {"input": "naïve \U0001f600 'quote\" %s", "output": "a\nb\x01"})
    store.append_history(ada, [odd])
    assert store.history(ada)[1] == odd
    for wrong in ("a\0b", "\ud800"):
        with pytest.raises(DataError, match="cannot be kept"):
            store.append_history(ada, [HistoryItem("2", {"input": wrong, "output": ""})])
    for name in ("", "x" * 257):
        with pytest.raises(DataError, match="at most 256"):
            store.append_history(ada, [HistoryItem(name, {"input": "a", "output": "b"})])


def test_a_history_has_a_longest_length(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.append_history(ada, items(1, 2), most=3)
    with pytest.raises(DataError, match="2 history items and 2 new ones are more than the 3 allowed"):
        store.append_history(ada, items(3, 4), most=3)
    assert store.append_history(ada, items(1, 2, 3), most=3) == 1


def test_appends_at_the_same_time_all_count(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda n: store.append_history(ada, items(n)), range(1, 25)))
    assert sum(added) == 24
    assert {item.item_id for item in store.history(ada)} == {str(n) for n in range(1, 25)}
    assert store.find_user(acme, "ada").items == 24


def test_a_long_history(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    many = [HistoryItem(str(n), {"input": "x", "output": "y"}) for n in range(2500)]
    assert store.append_history(ada, many) == 2500
    assert store.append_history(ada, many) == 0
    assert store.history(ada) == tuple(many)


def test_tenants_do_not_see_each_other(store: UserStore, database: Database, acme: Tenant) -> None:
    other = add_tenant(database, "other")
    store.append_history(store.create_user(acme, "ada"), items(1))
    with pytest.raises(NotFound):
        store.find_user(other, "ada")
    theirs = store.create_user(other, "ada")
    assert store.history(theirs) == ()
    store.delete_user(theirs)
    assert store.history(store.find_user(acme, "ada")) == tuple(items(1))
    assert [user.name for user in store.list_users(acme)] == ["ada"]
    assert store.list_users(other) == []


def test_names(store: UserStore, acme: Tenant) -> None:
    odd = ["../../etc/passwd", "a" * 256, "ünï 名前", "'; DROP TABLE users; --", "%", "_"]
    for name in odd:
        store.create_user(acme, name)
    assert sorted(user.name for user in store.list_users(acme)) == sorted(odd)
    for wrong in ("", "  ", "a" * 257, "a\nb", "a\x00b", "\ud800"):
        with pytest.raises(DataError, match="printable"):
            store.create_user(acme, wrong)
    with pytest.raises(Conflict, match="already"):
        store.create_user(acme, "%")


def test_users_page_by_page(store: UserStore, acme: Tenant) -> None:
    for number in range(7):
        store.create_user(acme, f"user {number}")
    first = store.list_users(acme, limit=3)
    rest = store.list_users(acme, after=first[-1].name, limit=10)
    assert [user.name for user in (*first, *rest)] == [f"user {number}" for number in range(7)]


# deleting ---------------------------------------------------------------------------------------------------------


def test_deletion_says_what_it_removed_and_leaves_nothing(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.append_history(ada, items(1, 2, 3))
    store.save_match(ada, StoredMatch(MATCH, torch.zeros(2), BANK, items=3))
    store.save_revision(ada, *revision())
    wanted = {
        "user": 1,
        "history items": 3,
        "vector and matched anchors": 1,
        "adapter revisions": 1,
        "places in jobs": 0,
    }
    assert store.audit(ada) == wanted
    assert store.delete_user(ada) == wanted
    assert set(store.audit(ada).values()) == {0}
    assert store.user_by_id(ada.id) is None
    with pytest.raises(NotFound):
        store.find_user(acme, "ada")


def test_nothing_reaches_who_comes_back_under_a_name(store: UserStore, acme: Tenant) -> None:
    before = store.create_user(acme, "ada")
    store.delete_user(before)
    now = store.create_user(acme, "ada")
    assert now.id != before.id
    late = (
        lambda: store.append_history(before, items(1)),
        lambda: store.save_match(before, StoredMatch(MATCH, torch.zeros(2), BANK, items=3)),
        lambda: store.save_revision(before, *revision()),
        lambda: store.delete_user(before),
    )
    for call in late:
        with pytest.raises(NotFound, match="deleted meanwhile"):
            call()
    assert store.history(now) == ()
    assert store.load_revision(now) is None


MARKER = "zyxwv-marker-of-ada"


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[UserStore]:
    made = UserStore(open_database(f"sqlite:///{tmp_path / 'users.db'}"))
    yield made
    made.database.close()


def _bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_sqlite_files_hold_nothing_of_who_was_deleted(sqlite_store: UserStore, tmp_path: Path) -> None:
    acme = add_tenant(sqlite_store.database, "acme")
    for name in ("bob", MARKER, "eve"):
        user = sqlite_store.create_user(acme, name)
        sqlite_store.append_history(
            user, [HistoryItem(f"{name} {n}", {"input": name * 50, "output": name}) for n in range(40)]
        )
        sqlite_store.save_revision(user, *revision())
    assert MARKER.encode() in _bytes_of(tmp_path)
    sqlite_store.delete_user(sqlite_store.find_user(acme, MARKER))
    assert MARKER.encode() not in _bytes_of(tmp_path)
    assert b"eve 39" in _bytes_of(tmp_path)


# damage, and databases that do not answer -------------------------------------------------------------------------


def test_a_damaged_record_is_noticed(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.save_revision(ada, *revision())
    with store.database.writing() as connection:
        record = bytearray(connection.execute(ADAPTERS.select()).one().record)
        record[len(record) // 2] ^= 4
        connection.execute(update(ADAPTERS).values(record=bytes(record)))
    with pytest.raises(AdapterError, match="damaged"):
        store.load_revision(ada)


def test_a_transaction_that_fails_leaves_no_trace(store: UserStore, acme: Tenant) -> None:
    ada = store.create_user(acme, "ada")
    store.append_history(ada, items(1))
    made, schema = revision()
    made.tensors["q.A"][0, 0] = float("inf")
    with pytest.raises(AdapterError, match="not a finite number"):
        store.save_revision(ada, made, schema)
    assert store.find_user(acme, "ada").revision == 0


def test_a_store_of_a_later_version_is_refused(url: str) -> None:
    database = open_database(url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'tomorrow'")
    database.close()
    with pytest.raises(StorageError, match="form 'tomorrow', which this version does not know"):
        open_database(url)


def test_urls_that_are_no_store(tmp_path: Path) -> None:
    for wrong in ("mysql://host/x", "junk", ""):
        with pytest.raises(ConfigError, match="wanted sqlite:///FILE or postgresql://"):
            open_database(wrong)
    with pytest.raises(StorageError, match="unable to open database file"):
        open_database(f"sqlite:///{tmp_path / 'none' / 'users.db'}")
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_database(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(StorageError, match=r"postgresql.*\*\*\*@") as caught:  # the password is not shown
        open_database("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    database = open_database(f"sqlite:///{path}")
    acme = add_tenant(database, "acme")
    held = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    held.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(UserStore(database).create_user, acme, "ada")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        held.execute("COMMIT")
        assert waiting.result(timeout=20).name == "ada"
    held.close()
    database.close()


# tenants and keys -------------------------------------------------------------------------------------------------


def test_keys(database: Database, acme: Tenant) -> None:
    other = ensure_tenant(database, "other")
    assert ensure_tenant(database, "other") == other
    mine, theirs = add_key(database, acme, label="shop"), add_key(database, other, label="app")
    assert tenant_of_key(database, mine) == acme
    assert tenant_of_key(database, theirs) == other
    for wrong in ("", mine[:-1], mine + "x", mine.upper(), "ünï", "\ud800"):
        assert tenant_of_key(database, wrong) is None
    first, second = list_keys(database)
    assert (first.tenant, first.label, second.tenant) == ("acme", "shop", "other")
    revoke_key(database, first.id)
    assert tenant_of_key(database, mine) is None
    assert tenant_of_key(database, theirs) == other
    with pytest.raises(NotFound, match="unknown key"):
        revoke_key(database, first.id)
    with pytest.raises(Conflict, match="tenant 'acme' already"):
        add_tenant(database, "acme")
    with pytest.raises(NotFound, match="known: acme, other"):
        find_tenant(database, "nobody")


def test_keys_are_not_kept_as_they_are(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'users.db'}")
    key = add_key(database, add_tenant(database, "acme"), label="shop")
    database.overwrite_deleted([API_KEYS])
    assert key.encode() not in _bytes_of(tmp_path)
    assert key.removeprefix("mta-").encode() not in _bytes_of(tmp_path)
    database.close()
