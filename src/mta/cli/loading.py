"""Reading what commands are given: users, banks, models, encoders, with remarks on what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mta.cli.display import note
from mta.cli.settings import TINY
from mta.data.read import read_users
from mta.errors import NotFound
from mta.progress import Progress
from mta.records import User
from mta.tasks.task import Task

if TYPE_CHECKING:
    from mta.base_model import BaseModel

SHOWN_SKIPPED = 3
SHOWN_NAMES = 5


def load_users(
    path: Path,
    task: Task | None,
    *,
    golds: Path | None = None,
    need_golds: bool = False,
    skip_malformed: bool = False,
    queries_per_user: int = 0,
) -> list[User]:
    """Read users, and say on standard error what was left out."""
    found = read_users(
        path,
        golds=golds,
        need_golds=need_golds,
        skip_malformed=skip_malformed,
        task=task,
        queries_per_user=queries_per_user,
    )
    if found.skipped:
        note(f"{path}: {len(found.skipped)} records left out: {' | '.join(found.skipped[:SHOWN_SKIPPED])}")
    return found.users


def pick_user(users: Sequence[User], user_id: str) -> User:
    """Return the user of that id.

    Raises:
        NotFound: there is none.
    """
    for user in users:
        if user.user_id == user_id:
            return user
    some = ", ".join(user.user_id for user in users[:SHOWN_NAMES])
    raise NotFound(f"no user {user_id!r} among the {len(users)} of the file; it has {some}, ...; check --user")


def load_base(name: str, *, device: str, dtype: str, threads: int, progress: Progress) -> BaseModel:
    """Load the base model, with as many threads as it deserves and the memory it uses kept for the next pass."""
    from mta.base_model import load_base_model
    from mta.runtime import keep_freed_memory, limit_threads

    keep_freed_memory()
    if threads or name == TINY:
        limit_threads(threads or 1)  # on tiny matrices several threads only wait for each other
    with progress("base model"):
        return load_base_model(name, device=device, dtype=dtype)
