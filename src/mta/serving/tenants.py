"""Tenants and their API keys: who may use the server, each seeing only her own users.

A key is shown once, when it is made; the store keeps its SHA-256. Keys are 32 random bytes, so that a slow hash would
add nothing.

Example:
    >>> tenant = add_tenant(database, "acme")
    >>> key = add_key(database, tenant, label="web shop")
    >>> tenant_of_key(database, key).name
    'acme'
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from mta.errors import Conflict, DataError, unknown_name
from mta.serving.database import Database, new_number
from mta.serving.tables import API_KEYS, LONGEST_NAME, TENANTS

PREFIX = "mta-"
"""Of a key, so that scanners for leaked secrets know it."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer of a server."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class KeyNote:
    """What is known of a key without the key."""

    id: int
    tenant: str
    label: str
    created: float
    """Seconds since 1970."""


def check_name(what: str, name: str) -> str:
    """Return a name.

    Raises:
        DataError: it is blank, too long, or has characters that cannot be printed.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(
            f"{what} {name[:40]!r}: wanted 1 to {LONGEST_NAME} printable characters, not only spaces, got {len(name)}"
        )
    return name


def add_tenant(database: Database, name: str) -> Tenant:
    """Add a tenant.

    Raises:
        Conflict: there is one of this name.
        DataError: not a name.
    """
    check_name("tenant", name)
    try:
        with database.writing() as connection:
            made = connection.execute(insert(TENANTS).values(name=name, created=time.time()))
    except IntegrityError:
        raise Conflict(f"there is a tenant {name!r} already; choose another name") from None
    return Tenant(new_number(made), name)


def find_tenant(database: Database, name: str) -> Tenant:
    """Return a tenant by name.

    Raises:
        NotFound: there is none.
    """
    known = {tenant.name: tenant for tenant in list_tenants(database)}
    if name not in known:
        raise unknown_name("tenant", name, known)
    return known[name]


def list_tenants(database: Database) -> list[Tenant]:
    """Return all tenants, in the order they were made."""
    with database.reading() as connection:
        rows = connection.execute(select(TENANTS.c.id, TENANTS.c.name).order_by(TENANTS.c.id))
        return [Tenant(row.id, row.name) for row in rows]


def ensure_tenant(database: Database, name: str) -> Tenant:
    """Return the tenant of this name, made if there is none."""
    try:
        return add_tenant(database, name)
    except Conflict:
        return find_tenant(database, name)


def add_key(database: Database, tenant: Tenant, *, label: str) -> str:
    """Make a key for a tenant and return it; it cannot be read again."""
    key = PREFIX + secrets.token_urlsafe(32)
    with database.writing() as connection:
        connection.execute(
            insert(API_KEYS).values(
                tenant_id=tenant.id, digest=_digest(key), label=check_name("label", label), created=time.time()
            )
        )
    return key


def tenant_of_key(database: Database, key: str) -> Tenant | None:
    """Return whose key it is; None for nobody's."""
    joined = select(TENANTS.c.id, TENANTS.c.name).join(API_KEYS, API_KEYS.c.tenant_id == TENANTS.c.id)
    with database.reading() as connection:
        row = connection.execute(joined.where(API_KEYS.c.digest == _digest(key))).one_or_none()
    return Tenant(row.id, row.name) if row else None


def list_keys(database: Database) -> list[KeyNote]:
    """Return what is known of all keys."""
    chosen = select(API_KEYS.c.id, TENANTS.c.name, API_KEYS.c.label, API_KEYS.c.created).join(TENANTS)
    with database.reading() as connection:
        return [KeyNote(*row) for row in connection.execute(chosen.order_by(API_KEYS.c.id))]


def revoke_key(database: Database, number: int) -> None:
    """Take a key away.

    Raises:
        NotFound: there is no key of this number.
    """
    with database.writing() as connection:
        gone = connection.execute(delete(API_KEYS).where(API_KEYS.c.id == number)).rowcount
    if not gone:
        raise unknown_name("key", str(number), [str(note.id) for note in list_keys(database)])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
