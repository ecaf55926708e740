"""The tables of a user store; `database.open_database` makes them.

Whose data a row is can be told from every table: rows hang on a user or on a tenant, and go with it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
LONGEST_NAME = 256
"""Characters of a user's or tenant's name."""
NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""SQLite gives new numbers to columns that are INTEGER only."""


def _owner(table: str) -> ForeignKey:
    return ForeignKey(f"{table}.id", ondelete="CASCADE")


TENANTS = Table(
    "tenants",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("name", String(LONGEST_NAME), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)
API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("tenant_id", NUMBER, _owner("tenants"), nullable=False, index=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("label", String(LONGEST_NAME), nullable=False),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)
USERS = Table(
    "users",
    METADATA,
    Column("id", NUMBER, primary_key=True),  # never given twice: who comes back under a name is somebody new
    Column("tenant_id", NUMBER, _owner("tenants"), nullable=False),
    Column("name", String(LONGEST_NAME), nullable=False),
    Column("created", Float, nullable=False),
    Column("items", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    sqlite_autoincrement=True,
)
HISTORY = Table(
    "history_items",
    METADATA,
    Column("user_id", NUMBER, _owner("users"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("item_id", String(LONGEST_NAME), nullable=False),
    Column("fields", JSON, nullable=False),
    Column("time", String(LONGEST_NAME)),
    Column("created", Float, nullable=False),
    UniqueConstraint("user_id", "item_id"),
)
MATCHES = Table(
    "matches",
    METADATA,
    Column("user_id", NUMBER, _owner("users"), primary_key=True),
    Column("found_by", String(64), nullable=False),
    Column("items", Integer, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    Column("anchors", JSON, nullable=False),
    Column("created", Float, nullable=False),
)
SCHEMAS = Table(
    "record_schemas",
    METADATA,
    Column("identity", LargeBinary(16), primary_key=True),
    Column("content", JSON, nullable=False),
)
ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("user_id", NUMBER, _owner("users"), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("schema_identity", LargeBinary(16), ForeignKey("record_schemas.identity"), nullable=False),
    Column("bank", String(64), nullable=False),
    Column("anchors", JSON, nullable=False),
    Column("items", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("note", JSON, nullable=False),
    Column("created", Float, nullable=False),
)
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant_id", NUMBER, _owner("tenants"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("message", String, nullable=False),
    Index(None, "state", "created"),
)
JOB_USERS = Table(
    "job_users",
    METADATA,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", NUMBER, _owner("users"), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("message", String, nullable=False),
    Index(None, "user_id"),
)
