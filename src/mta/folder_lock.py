"""One process at a time in a folder that results are written to.

The lock is the operating system's, on a file in the folder: it ends with the process that holds it, however that ends.

Example:
    >>> @alone_in_folder
    ... def write_everything(rows: list[str], folder: Path) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from mta.errors import StorageError
from mta.files import folder_if_used, remove_leftovers, storage_errors

LOCK = ".lock"
P = ParamSpec("P")
R = TypeVar("R")


def alone_in_folder(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function work only while nobody else does in the folder it is given as `folder`.

    The folder is created if missing. The function then also raises StorageError where another call is at work there.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with sole_use(Path(signature.bind(*args, **kwargs).arguments["folder"])):
            return function(*args, **kwargs)

    return alone


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep everybody else out of `folder`, which is created if missing, until the block ends.

    What killed writers have left half made in it is removed.

    Raises:
        StorageError: another call, of this or another process, is at work there, or the folder cannot be written.
    """
    with folder_if_used(folder):
        lock = _acquired(folder)
        try:
            remove_leftovers(folder)
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits at the removed file looks again
            lock.release()


def _acquired(folder: Path) -> BaseFileLock:
    lock = FileLock(folder / LOCK)
    with storage_errors(folder, "use"):
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise StorageError(
                f"{folder} is in use: another call is writing its results there; wait until it has ended (the same "
                "command then goes on from what is done), or choose another folder"
            ) from error
    return lock
