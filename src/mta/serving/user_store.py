"""The people a server knows: histories, the anchors found for them, and revisions of their adapters.

People are looked up by tenant and name, and no tenant's call finds another's. A revision is written and becomes the
current one in one transaction; earlier ones go. A user's number is never given twice, so that whatever was computed for
somebody who has been deleted meanwhile cannot reach who comes back under the same name.

Example:
    >>> store = UserStore(open_database("sqlite:///users.db"))
    >>> ada = store.create_user(tenant, "ada")
    >>> store.append_history(ada, [HistoryItem("1", {"input": "...", "output": "..."})])
    1
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sqlalchemy import ColumnElement, Connection, Row, Select, Table, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from torch import Tensor

from mta.characters import whole_characters
from mta.errors import AdapterError, Conflict, DataError, NotFound
from mta.flat_records import Schema, read_record, schema_from_dict, write_record
from mta.merging import Match
from mta.records import HistoryItem
from mta.serving.database import Database, new_number
from mta.serving.tables import ADAPTERS, HISTORY, JOB_USERS, LONGEST_NAME, MATCHES, SCHEMAS, USERS
from mta.serving.tenants import Tenant, check_name

PLACES: Mapping[str, Table] = {
    "history items": HISTORY,
    "vector and matched anchors": MATCHES,
    "adapter revisions": ADAPTERS,
    "places in jobs": JOB_USERS,
}
"""Where rows of a user are, besides her own."""


@dataclass(frozen=True, slots=True)
class StoredUser:
    """One person, as the store knows her."""

    id: int
    """Never given twice."""
    tenant_id: int
    name: str
    created: float
    """Seconds since 1970."""
    items: int
    """Length of the history."""
    revision: int
    """Of the current adapter; 0: none was trained."""


@dataclass(frozen=True, slots=True)
class StoredMatch:
    """The anchors found for a user, and from what."""

    match: Match
    vector: Tensor
    """(D,) float32, of the history as the matching encoder reads it."""
    found_by: str
    """Identifies the bank and the settings it was made with."""
    items: int
    """Length of the history it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionHead:
    """What is known of one trained adapter of a user without reading it."""

    match: Match
    """The anchors it was trained over."""
    bank: str
    """Checksum of their bank; "" for none."""
    items: int
    """Length of the history it was trained on."""
    note: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    """Counts from 1; 0: not stored yet."""
    created: float = 0.0
    """Seconds since 1970."""
    bytes: int = 0
    """Of the record."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One trained adapter of a user."""

    head: RevisionHead
    tensors: Mapping[str, Tensor]


class UserStore:
    """The users of all tenants in one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._schemas: dict[bytes, Schema] = {}

    # people -------------------------------------------------------------------------------------------------------

    def create_user(self, tenant: Tenant, name: str) -> StoredUser:
        """Add a user without a history.

        Raises:
            Conflict: the tenant has a user of this name.
            DataError: not a name.
        """
        check_name("user", name)
        new = StoredUser(id=0, tenant_id=tenant.id, name=name, created=time.time(), items=0, revision=0)
        values = {column: value for column, value in asdict(new).items() if column != "id"}
        try:
            with self.database.writing() as connection:
                made = connection.execute(insert(USERS).values(values))
        except IntegrityError:
            raise Conflict(f"there is a user {name!r} already; append to her history, or delete her first") from None
        return replace(new, id=new_number(made))

    def find_user(self, tenant: Tenant, name: str) -> StoredUser:
        """Return a tenant's user.

        Raises:
            NotFound: the tenant has none of this name.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                select(USERS).where(USERS.c.tenant_id == tenant.id, USERS.c.name == name)
            ).one_or_none()
        if row is None:
            raise NotFound(f"no user {name[:LONGEST_NAME]!r}; create her first")
        return StoredUser(**row._mapping)

    def user_by_id(self, number: int) -> StoredUser | None:
        """Return a user by her number; None where she has been deleted."""
        with self.database.reading() as connection:
            row = connection.execute(select(USERS).where(USERS.c.id == number)).one_or_none()
        return StoredUser(**row._mapping) if row else None

    def list_users(self, tenant: Tenant, *, after: str = "", limit: int = 100) -> list[StoredUser]:
        """Return a tenant's users by name, those after a name, at most as many as asked for."""
        chosen = select(USERS).where(USERS.c.tenant_id == tenant.id, USERS.c.name > after)
        with self.database.reading() as connection:
            rows = connection.execute(chosen.order_by(USERS.c.name).limit(limit))
            return [StoredUser(**row._mapping) for row in rows]

    def count_users(self) -> int:
        """Return how many users there are, of all tenants."""
        with self.database.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(USERS)).scalar_one())

    def delete_user(self, user: StoredUser) -> dict[str, int]:
        """Delete a user with everything that is kept of her.

        Returns:
            Place -> rows removed from it.

        Raises:
            NotFound: she is gone already.
        """
        with self.database.writing() as connection:
            self._lock(connection, user)
            removed = {
                place: connection.execute(delete(table).where(table.c.user_id == user.id)).rowcount
                for place, table in PLACES.items()
            }
            connection.execute(delete(USERS).where(USERS.c.id == user.id))
        self.database.overwrite_deleted([USERS, *PLACES.values()])
        return {"user": 1, **removed}

    def audit(self, user: StoredUser) -> dict[str, int]:
        """Return every place where data of a user is -> rows there."""
        with self.database.reading() as connection:
            found = {
                place: connection.execute(
                    select(func.count()).select_from(table).where(table.c.user_id == user.id)
                ).scalar_one()
                for place, table in PLACES.items()
            }
            left = select(func.count()).select_from(USERS).where(USERS.c.id == user.id)
            return {"user": connection.execute(left).scalar_one(), **found}

    # histories ----------------------------------------------------------------------------------------------------

    def append_history(self, user: StoredUser, items: Sequence[HistoryItem], *, most: int | None = None) -> int:
        """Append items to a user's history; one that is there already, word for word, is not added again.

        Args:
            user: whose.
            items: in order.
            most: longest history allowed.

        Returns:
            Items added.

        Raises:
            Conflict: an item's id is there with other texts.
            DataError: the history would be too long, or a text cannot be kept.
            NotFound: the user has been deleted.
        """
        for item in items:
            _check_texts(item)
        with self.database.writing() as connection:
            length = self._lock(connection, user).items
            new = _new_items(items, self._known_items(connection, user, [item.item_id for item in items]))
            if most is not None and length + len(new) > most:
                raise DataError(
                    f"user {user.name!r}: {length} history items and {len(new)} new ones are more than the {most} "
                    "allowed; send fewer"
                )
            if new:
                now = time.time()
                rows = [
                    {
                        "user_id": user.id,
                        "position": length + number,
                        "item_id": item.item_id,
                        "fields": dict(item.fields),
                        "time": item.time,
                        "created": now,
                    }
                    for number, item in enumerate(new)
                ]
                connection.execute(insert(HISTORY), rows)
                connection.execute(update(USERS).where(USERS.c.id == user.id).values(items=length + len(new)))
        return len(new)

    def _known_items(self, connection: Connection, user: StoredUser, ids: Sequence[str]) -> dict[str, HistoryItem]:
        known: dict[str, HistoryItem] = {}
        for start in range(0, len(ids), 500):
            chosen = HISTORY.c.item_id.in_(ids[start : start + 500])
            rows = connection.execute(select(HISTORY).where(HISTORY.c.user_id == user.id, chosen))
            known |= {row.item_id: HistoryItem(row.item_id, row.fields, row.time) for row in rows}
        return known

    def history(self, user: StoredUser) -> tuple[HistoryItem, ...]:
        """Return a user's history, oldest item first."""
        chosen = select(HISTORY).where(HISTORY.c.user_id == user.id).order_by(HISTORY.c.position)
        with self.database.reading() as connection:
            return tuple(HistoryItem(row.item_id, row.fields, row.time) for row in connection.execute(chosen))

    # anchors ------------------------------------------------------------------------------------------------------

    def save_match(self, user: StoredUser, found: StoredMatch) -> None:
        """Keep the anchors found for a user, in place of earlier ones.

        Raises:
            NotFound: the user has been deleted.
        """
        values = {
            "user_id": user.id,
            "found_by": found.found_by,
            "items": found.items,
            "vector": found.vector.detach().cpu().float().numpy().tobytes(),
            "anchors": _anchors_as_rows(found.match),
            "created": time.time(),
        }
        with self.database.writing() as connection:
            self._lock(connection, user)
            connection.execute(delete(MATCHES).where(MATCHES.c.user_id == user.id))
            connection.execute(insert(MATCHES).values(values))

    def load_match(self, user: StoredUser) -> StoredMatch | None:
        """Return the anchors found for a user; None where none were looked for."""
        with self.database.reading() as connection:
            row = connection.execute(select(MATCHES).where(MATCHES.c.user_id == user.id)).one_or_none()
        if row is None:
            return None
        return StoredMatch(_match_from_rows(user.name, row.anchors), _vector(row.vector), row.found_by, row.items)

    def list_vectors(self, tenant_id: int, *, found_by: str, limit: int) -> dict[str, Tensor]:
        """Return name -> (D,) vector of a tenant's people whose anchors were found this way, the latest first."""
        chosen = (
            select(USERS.c.name, MATCHES.c.vector)
            .join(MATCHES, MATCHES.c.user_id == USERS.c.id)
            .where(USERS.c.tenant_id == tenant_id, MATCHES.c.found_by == found_by)
            .order_by(MATCHES.c.created.desc())
        )
        with self.database.reading() as connection:
            return {row.name: _vector(row.vector) for row in connection.execute(chosen.limit(limit))}

    # adapters -----------------------------------------------------------------------------------------------------

    def save_revision(self, user: StoredUser, revision: Revision, schema: Schema) -> int:
        """Keep a new adapter of a user and make it the current one; the earlier one goes.

        Args:
            user: whose.
            revision: its number, time and size are not used.
            schema: what the record is written by.

        Returns:
            Its number.

        Raises:
            AdapterError: the tensors are not those of the schema.
            NotFound: the user has been deleted.
        """
        record = write_record(revision.tensors, schema)
        with self.database.writing() as connection:
            number = self._lock(connection, user).revision + 1
            self._save_schema(connection, schema)
            connection.execute(
                insert(ADAPTERS).values(
                    user_id=user.id,
                    revision=number,
                    schema_identity=schema.identity,
                    bank=revision.head.bank,
                    anchors=_anchors_as_rows(revision.head.match),
                    items=revision.head.items,
                    record=record,
                    note=dict(revision.head.note),
                    created=time.time(),
                )
            )
            connection.execute(update(USERS).where(USERS.c.id == user.id).values(revision=number))
            connection.execute(delete(ADAPTERS).where(ADAPTERS.c.user_id == user.id, ADAPTERS.c.revision < number))
        return number

    def load_revision(self, user: StoredUser) -> Revision | None:
        """Return the current adapter of a user; None where none was trained.

        Raises:
            AdapterError: the record is damaged.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                _current(user, *HEAD_COLUMNS, ADAPTERS.c.record, ADAPTERS.c.schema_identity)
            ).one_or_none()
            if row is None:
                return None
            schema = self._schema(connection, row.schema_identity)
        return Revision(_head(user, row), read_record(row.record, schema))

    def load_head(self, user: StoredUser) -> RevisionHead | None:
        """Return what is known of the current adapter of a user, without its values; None where none was trained."""
        with self.database.reading() as connection:
            row = connection.execute(_current(user, *HEAD_COLUMNS)).one_or_none()
        return None if row is None else _head(user, row)

    def _save_schema(self, connection: Connection, schema: Schema) -> None:
        if schema.identity in self._schemas:
            return
        make = sqlite_insert if self.database.kind == "sqlite" else postgresql_insert
        values = {"identity": schema.identity, "content": schema.to_dict()}
        connection.execute(make(SCHEMAS).values(values).on_conflict_do_nothing())

    def _schema(self, connection: Connection, identity: bytes) -> Schema:
        if identity not in self._schemas:
            row = connection.execute(select(SCHEMAS.c.content).where(SCHEMAS.c.identity == identity)).one_or_none()
            if row is None:
                raise AdapterError(
                    f"the store lacks the schema {identity.hex()} of an adapter; train the adapter again"
                )
            self._schemas[identity] = schema_from_dict(row.content)
        return self._schemas[identity]

    def _lock(self, connection: Connection, user: StoredUser) -> StoredUser:
        """Keep others from changing a user until the end of the transaction; return her as she is now."""
        row = connection.execute(select(USERS).where(USERS.c.id == user.id).with_for_update()).one_or_none()
        if row is None:
            raise NotFound(f"user {user.name!r} has been deleted meanwhile")
        return StoredUser(**row._mapping)


def _vector(stored: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(stored, dtype=np.float32).copy())


def _check_texts(item: HistoryItem) -> None:
    for text in (item.item_id, item.time or "", *item.fields, *item.fields.values()):
        if "\0" in text or whole_characters(text) != text:
            raise DataError(
                f"history item {item.item_id[:40]!r}: a text holds a character that cannot be kept (NUL, or half of a "
                "surrogate pair); leave it out"
            )
    if not 0 < len(item.item_id) <= LONGEST_NAME or len(item.time or "") > LONGEST_NAME:
        raise DataError(f"history item {item.item_id[:40]!r}: its id and time have at most {LONGEST_NAME} characters")


def _new_items(items: Iterable[HistoryItem], known: dict[str, HistoryItem]) -> list[HistoryItem]:
    """Return the items that are not known; one known with other texts is refused."""
    new = []
    for item in items:
        before = known.setdefault(item.item_id, item)
        if before is item:
            new.append(item)
        elif dict(before.fields) != dict(item.fields):
            raise Conflict(
                f"there is a history item {item.item_id!r} with other texts; give the new one an id of its own"
            )
    return new


HEAD_COLUMNS = (
    *(
        ADAPTERS.c.revision,
        ADAPTERS.c.bank,
        ADAPTERS.c.anchors,
        ADAPTERS.c["items"],
        ADAPTERS.c.note,
        ADAPTERS.c.created,
    ),
    func.length(ADAPTERS.c.record).label("bytes"),
)


def _current(user: StoredUser, *columns: ColumnElement[Any]) -> Select[Any]:
    """Return the query for columns of a user's current adapter."""
    is_current = (USERS.c.id == ADAPTERS.c.user_id) & (USERS.c.revision == ADAPTERS.c.revision)
    return select(*columns).join(USERS, is_current).where(USERS.c.id == user.id)


def _head(user: StoredUser, row: Row[Any]) -> RevisionHead:
    return RevisionHead(
        number=row.revision,
        match=_match_from_rows(user.name, row.anchors),
        bank=row.bank,
        items=row.items,
        note=row.note,
        created=row.created,
        bytes=row.bytes,
    )


def _anchors_as_rows(match: Match) -> list[list[Any]]:
    return [list(row) for row in zip(match.anchor_ids, match.similarities, match.weights, strict=True)]


def _match_from_rows(name: str, rows: Sequence[Sequence[Any]]) -> Match:
    ids, similarities, weights = zip(*rows, strict=True) if rows else ((), (), ())
    return Match(name, ids, similarities, weights)
