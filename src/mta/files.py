"""Safe files: atomic writes, checksums, readable errors, and names that cannot leave their folder.

A write goes to a temporary file in the same folder, is flushed to disk, and is renamed into place; a
killed process leaves either the old file or the new one. Every OSError becomes a StorageError that
names the path and the next step.

Example:
    >>> write_json(Path("out") / "config.json", {"seed": 42})
    >>> read_json(Path("out") / "config.json")
    {'seed': 42}
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mta.errors import DataError, StorageError

SAFE_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
MAX_NAME_BYTES = 120


TEMPORARY = ".tmp"
"""Ending of files in the making; their names start with a dot."""

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Endings of weight files that run code when they are opened; none is ever opened."""


def safe_name(name: str) -> str:
    """Turn any text (a user id with "/", "..", emoji) into a file name, injectively.

    Letters, digits, "_" and "-" stay; every other byte of the UTF-8 form becomes %XX. Long names keep a
    readable start and end in a hash.
    """
    quoted = "".join(
        c if c in SAFE_CHARACTERS else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))
        for c in name
    )
    if len(quoted) <= MAX_NAME_BYTES and quoted:
        return quoted
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{quoted[: MAX_NAME_BYTES - 20]}%~{digest}"


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names `path` and what was being done."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot {doing} {path}: {reason}; {_remedy(error, doing)}") from error


def _remedy(error: OSError, doing: str) -> str:
    if isinstance(error, IsADirectoryError):
        return "this is a folder; give the file in it"
    if isinstance(error, FileNotFoundError) and doing == "read":
        return "check the path"
    return (
        "check that the path exists, that there is space on the disk and that you may use it, or choose another folder"
    )


def is_there(path: Path) -> bool:
    """Say whether there is anything at `path`.

    Raises:
        StorageError: it cannot be told, for example because a folder above it may not be searched.
    """
    with storage_errors(path, "read"):
        return path.exists()


def expand_home(text: str) -> Path:
    """Return a path in which a leading "~" or "~name" is that home folder; where nobody has that name it stays."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises a RuntimeError there


@contextmanager
def folder_if_used(path: Path) -> Iterator[None]:
    """Create the folder `path`; if the block raises and nothing was put into a new one, take it away again."""
    existed = is_there(path)
    make_folder(path)
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):  # something is in it
                path.rmdir()
        raise


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents, if missing; return it."""
    with storage_errors(path, "create folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed and renamed to `path`.

    If the block raises, the temporary file is removed and whatever was at `path` stays as it was. A link is followed:
    the file it points to is written, the link stays.

    Raises:
        StorageError: it cannot be written, or `path` is there and no regular file (a folder, a pipe, a device).
    """
    path = Path(os.path.realpath(path))
    if is_there(path) and not path.is_file():
        raise StorageError(f"cannot write {path}: it is no regular file; name a file, or one that is not there yet")
    make_folder(path.parent)
    with storage_errors(path, "write"):
        temporary = path.parent / f".{path.name[:60]}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left half made in a folder; only where nobody else is writing."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


SEAL = "checksum"
"""Key under which a sealed JSON object holds the checksum of the rest of it."""


def sealed(content: Mapping[str, Any], *, key: str = SEAL) -> dict[str, Any]:
    """Return a JSON object with a checksum of its other content under `key`, so that a damaged one is noticed."""
    rest = {name: value for name, value in content.items() if name != key}
    return {**rest, key: sha256_json(rest)}


def seal_holds(found: Any, *, key: str = SEAL) -> bool:
    """Say whether a value read back is a sealed object, and as it was sealed."""
    return isinstance(found, dict) and found.get(key) == sealed(found, key=key)[key]


def seal_broken(found: Any) -> bool:
    """Say whether a value read back has a checksum that does not hold; files of earlier versions have none."""
    return isinstance(found, dict) and SEAL in found and not seal_holds(found)


def write_jsonl(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Write one JSON object a line to `path`, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        StorageError: it is missing or not readable.
        DataError: it is not UTF-8.
    """
    with storage_errors(path, "read"):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8 first") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StorageError: it is missing or not readable.
        DataError: it is not JSON, for example because it was cut in the middle.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "too deep or too long a value"
        raise DataError(
            f"{path} is not valid JSON ({where}: {error}); the file may be cut off - fetch or write it again"
        ) from error


def read_jsonl(path: Path) -> list[tuple[int, Any]]:
    """Read a JSON-lines file as (line number, value) pairs; blank lines are skipped.

    Raises:
        StorageError: it is missing or not readable.
        DataError: a line is not JSON.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            raise DataError(
                f"{path}, line {number} is not valid JSON: {error}; each line must be one object"
            ) from error
    return rows


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with storage_errors(path, "read"), path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON form, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
