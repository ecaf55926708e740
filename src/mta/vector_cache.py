"""A file that remembers text vectors, so that no text is embedded twice.

Entries are found by content: a hash of the encoder's fingerprint and the text. The file is SQLite, so that several
processes may use it at once and a killed one leaves it whole; every entry carries a checksum, and a damaged one counts
as missing. Texts themselves are never stored.

Example:
    >>> cache = VectorCache(Path("vectors.sqlite"))
    >>> cache.write({vector_key("f", "a text"): torch.ones(3)})
    >>> cache.read([vector_key("f", "a text")], dimensions=3)[vector_key("f", "a text")]
    tensor([1., 1., 1.])
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mta.errors import StorageError
from mta.files import make_folder
from mta.runtime import cache_folder

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
KEYS_PER_QUERY = 500
SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, crc INTEGER NOT NULL, vector BLOB NOT NULL)"


def vector_key(fingerprint: str, text: str) -> bytes:
    """Return the key of one text under one encoder: SHA-256 over the encoder's fingerprint and the text."""
    return hashlib.sha256(f"{fingerprint}\n{text}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class VectorCache:
    """Vectors by key in one SQLite file; threads and processes may share it."""

    path: Path

    def read(self, keys: Sequence[bytes], *, dimensions: int) -> dict[bytes, Tensor]:
        """Return the vectors that are there and whole; the rest is absent from the result (damage is said in the log).

        Args:
            keys: keys from `vector_key`.
            dimensions: D; an entry of another length counts as damaged.

        Returns:
            Key -> (D,) float32.

        Raises:
            StorageError: the file cannot be opened or is not a cache file.
        """
        found: dict[bytes, Tensor] = {}
        damaged = 0
        with self._connection() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, crc, vector FROM vectors WHERE key IN ({marks})"
                for key, crc, blob in connection.execute(query, part):
                    if _is_whole(key, crc, blob, dimensions):
                        found[key] = torch.from_numpy(np.frombuffer(blob, dtype="<f4").astype(np.float32))
                    else:
                        damaged += 1
        if damaged:
            log.warning("%d vectors in the cache %s are damaged and count as missing", damaged, self.path)
        return found

    def write(self, vectors: Mapping[bytes, Tensor]) -> None:
        """Store the vectors in one transaction, replacing entries of the same key.

        Raises:
            StorageError: the file cannot be written or is not a cache file.
        """
        rows = [(key, *_packed(key, vector)) for key, vector in vectors.items()]
        with self._connection() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO vectors (key, crc, vector) VALUES (?, ?, ?)", rows)

    def forget(self, keys: Iterable[bytes]) -> None:
        """Remove entries for good: their bytes are overwritten in the file, not only unlinked.

        Raises:
            StorageError: the file cannot be written or is not a cache file.
        """
        with self._connection() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            with connection:
                connection.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key in keys])
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one operation: cheap, and safe across threads and forks."""
        make_folder(self.path.parent)
        try:
            with closing(sqlite3.connect(self.path, timeout=TIMEOUT_S)) as connection:
                _prepare(connection)
                yield connection
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot use the vector cache {self.path}: {error}; check that the disk has space and that you may "
                "write there - it only saves time, so a damaged file can be deleted"
            ) from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging and make its table.

    Two processes that create the file together can meet in the switch, where SQLite answers "locked" without waiting.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(SCHEMA)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _packed(key: bytes, vector: Tensor) -> tuple[int, bytes]:
    blob = vector.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()
    return zlib.crc32(blob, zlib.crc32(key)), blob


def _is_whole(key: bytes, crc: object, blob: object, dimensions: int) -> bool:
    return isinstance(blob, bytes) and len(blob) == 4 * dimensions and crc == zlib.crc32(blob, zlib.crc32(key))


def default_cache() -> VectorCache:
    """Return the cache that all runs on this account share, in the cache folder."""
    return VectorCache(cache_folder() / "vectors.sqlite")
