"""A connection to the database of a user store: SQLite by default, PostgreSQL by URL; tables are made and migrated.

SQLite runs with a write-ahead log that is flushed on every commit, so that what was acknowledged survives a lost
machine, and with deleted content overwritten. Every transaction that writes takes the write lock when it begins.

Example:
    >>> database = open_database("sqlite:///users.db")
    >>> with database.writing() as connection:
    ...     connection.execute(...)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, CursorResult, Engine, Table, event
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from mta.errors import ConfigError, StorageError

MIGRATIONS = Path(__file__).with_name("migrations")
WAIT_S = 30
"""Seconds to wait for another process's write."""
WRITES = "mta_writes"
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""Kind of database as it stands in a URL -> with its driver."""


@dataclass(frozen=True, slots=True)
class Database:
    """An open database with the tables of this version."""

    engine: Engine

    @property
    def kind(self) -> str:
        """The kind of database, "sqlite" or "postgresql"."""
        return self.engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads.

        Raises:
            StorageError: the database cannot be reached.
        """
        with _storage_errors(self.engine), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes; it is committed at the end of the block, or leaves no trace.

        Raises:
            StorageError: the database cannot be reached or written.
        """
        with _storage_errors(self.engine), self.engine.execution_options(**{WRITES: True}).begin() as connection:
            yield connection

    def overwrite_deleted(self, tables: Iterable[Table]) -> bool:
        """Take what was deleted from tables out of the database's files; False where readers at work put it off.

        SQLite overwrites it when it is deleted, and here in its log; PostgreSQL keeps old row versions until its
        tables are vacuumed, which this does, and their bytes until the space is used again.
        """
        with _storage_errors(self.engine), self.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if self.kind == "sqlite":
                busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
                return not busy
            connection.exec_driver_sql(f"VACUUM {', '.join(table.name for table in tables)}")
            return True

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open a database; make its tables, or bring them to this version's form.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`.

    Raises:
        ConfigError: not such a URL.
        StorageError: it cannot be opened, or was made by a later version.
    """
    engine = _engine(url)
    with _storage_errors(engine):
        _migrate(engine)
    return Database(engine)


def new_number(made: CursorResult[Any]) -> int:
    """Return the number that the database gave to a row that was inserted."""
    key = made.inserted_primary_key
    if key is None:
        raise TypeError("no row was inserted")
    return int(key[0])


def _engine(url: str) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        driver = DRIVERS.get(parsed.get_backend_name())
        if driver is None:
            raise ConfigError(
                f"store {parsed.render_as_string()!r}: wanted sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
            )
        if driver != "sqlite":
            return sqlalchemy.create_engine(parsed.set(drivername=driver), pool_pre_ping=True, pool_size=8)
        engine = sqlalchemy.create_engine(parsed, connect_args={"timeout": WAIT_S})
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"not the URL of a store: {error}; wanted sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Begin with the write lock where something will be written, so that two writers wait instead of failing."""
    kind = "IMMEDIATE" if connection.get_execution_options().get(WRITES) else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {kind}")


def _migrate(engine: Engine) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        if engine.dialect.name == "postgresql":  # one process at a time
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5117072)")
        found = MigrationContext.configure(connection).get_current_revision()
        known = [step.revision for step in script.walk_revisions()]
        if found is not None and found not in known:
            raise StorageError(
                f"the store {engine.url.render_as_string()} has the form {found!r}, which this version does not know "
                f"(newest it knows: {script.get_current_head()!r}); update the package"
            )
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


@contextmanager
def _storage_errors(engine: Engine) -> Iterator[None]:
    """Turn what says that the database is out of reach or refuses to write into a StorageError."""
    try:
        yield
    except (OperationalError, InterfaceError, DatabaseError) as error:
        if isinstance(error, (IntegrityError, ProgrammingError, DataError)):
            raise
        raise StorageError(f"{_said(engine, error)}; is it running, and may this process use it?") from error
    except sqlalchemy.exc.TimeoutError as error:
        raise StorageError(f"store {engine.url.render_as_string()}: no connection became free: {error}") from error


def _said(engine: Engine, error: DBAPIError) -> str:
    reason = str(error.orig).strip().splitlines()[0]
    return f"store {engine.url.render_as_string()}: {reason}"
