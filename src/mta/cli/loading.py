"""Reading what commands are given: users, banks, models, encoders, with remarks on what was left out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta.cli.display import note
from mta.cli.settings import TINY
from mta.data.lamp import outputs_path
from mta.data.read import read_users
from mta.errors import NotFound
from mta.files import is_there, sha256_file
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


@dataclass(frozen=True, slots=True)
class People:
    """Who a run is about."""

    pool: list[User]
    targets: list[User]
    notes: dict[str, Any]
    """For the run card: the command, the files, who was left out."""


def load_people(
    pool: Path,
    targets: Path,
    task: Task,
    *,
    golds: Path | None,
    users: int,
    pool_users: int,
    drop_leaks: bool,
    skip_malformed: bool,
    queries_per_user: int,
) -> People:
    """Read pool and targets as the options of a run say, and say on standard error what was left out."""
    files = {"pool": pool, "targets": targets, "answers": golds or outputs_path(targets)}
    notes: dict[str, Any] = {
        "command": shlex.join(["mta", *sys.argv[1:]]),
        "SHA-256 of the files": {name: sha256_file(path) for name, path in files.items() if is_there(path)},
    }
    served = load_users(
        targets,
        task,
        golds=golds,
        need_golds=True,
        skip_malformed=skip_malformed,
        queries_per_user=queries_per_user,
    )
    source = load_users(pool, task, skip_malformed=skip_malformed)
    served = _capped(served, users, "target users", notes)
    if drop_leaks:
        source = _without_leaks(source, served, task, notes)
    return People(_capped(source, pool_users, "pool users", notes), served, notes)


def _capped(users: list[User], most: int, what: str, notes: dict[str, Any]) -> list[User]:
    if not most or len(users) <= most:
        return users
    notes[f"capped {what}"] = f"the first {most} of {len(users)}"
    note(f"{what}: the first {most} of {len(users)}")
    return users[:most]


def _without_leaks(pool: Sequence[User], targets: Sequence[User], task: Task, notes: dict[str, Any]) -> list[User]:
    from mta.data.people import rule_for
    from mta.data.splits import drop_leaks

    kept, _ = drop_leaks(pool, targets, rule=rule_for(task.task_id))
    left_out = len(pool) - len(kept)
    if left_out:
        notes["left out of the pool"] = f"{left_out} users who are a target person or hold a target's answer"
        note(f"pool: {left_out} of {len(pool)} users left out, because they are a target person or hold an answer")
    return kept


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
    from mta.memory_at_hand import keep_freed_memory
    from mta.runtime import limit_threads

    keep_freed_memory()
    if threads or name == TINY:
        limit_threads(threads or 1)  # on tiny matrices several threads only wait for each other
    with progress("base model"):
        return load_base_model(name, device=device, dtype=dtype)
