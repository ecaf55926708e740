"""Stage 3: a tiny adapter per user, trained on the user's own few examples over a frozen composition.

Nothing is merged into the base: the composition beneath stays un-merged and unchanged, and what is trained is a
separate adapter of a few ranks. All users are trained together by the one engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mta.base_model import BaseModel
from mta.config import EngineConfig, PromptConfig, TrainConfig
from mta.lora.adapter import Recipe
from mta.progress import Progress, silent
from mta.records import User
from mta.tasks.task import Task
from mta.training_plan import LORA, Kind, TrainJob
from mta.training_store import StoredAdapter, train_and_store
from mta.user_rows import user_rows


@dataclass(frozen=True, slots=True)
class Adaptation:
    """The adapted users."""

    adapters: Mapping[str, StoredAdapter]
    """user id -> the adapter trained on the user's own examples (without what lies beneath)."""
    skipped: Mapping[str, str]
    """user id -> why there is none."""
    cut_rows: int
    """Training prompts that were cut to fit."""
    seconds: float


def adapt_users(
    base: BaseModel,
    task: Task,
    users: Sequence[User],
    folder: Path,
    *,
    beneath: Mapping[str, Recipe],
    train: TrainConfig,
    prompts: PromptConfig,
    engine: EngineConfig,
    kind: Kind = LORA,
    progress: Progress = silent,
) -> Adaptation:
    """Train each user's own adapter on top of what lies beneath it.

    Source: MTA Eq. 7   only (A_u, B_u) are trained, W_0 and the merged adapter are frozen

    Args:
        base: the frozen model.
        task: what is asked.
        users: whose histories are learned.
        folder: one file per user; a killed call continues.
        beneath: user id -> frozen composition; a user without an entry is adapted on the bare base model.
        train: settings of the adapters.
        prompts: how examples are rendered; use the bank's.
        engine: packing.
        kind: what is trained of each user, where it is more than an adapter.
        progress: told about the stage.
    """
    data = {user.user_id: user_rows(base.tokens, task, user, train=train, prompts=prompts) for user in users}
    jobs = [
        TrainJob(name, rows.rows, train, held_out=rows.held_out, frozen=beneath.get(name), kind=kind)
        for name, rows in data.items()
        if rows.rows
    ]
    skipped = {name: "no training example in the history" for name, rows in data.items() if not rows.rows}
    with progress("adaptation") as step:
        trained = train_and_store(
            base, jobs, folder, engine=engine, on_progress=lambda p: step(p.updates, p.total_updates)
        )
    good = {name: stored for name, stored in trained.adapters.items() if not stored.note.diverged}
    skipped |= {name: "training diverged" for name in trained.adapters if name not in good}
    return Adaptation(good, skipped, sum(rows.cut_rows for rows in data.values()), trained.seconds)
