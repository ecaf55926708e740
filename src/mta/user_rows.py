"""From a user's history to the token rows of one training job, with held-out rows that leak nothing.

A held-out item is neither trained on nor shown beside a training example; beside a held-out row only training items are
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mta.config import PromptConfig, TrainConfig
from mta.packing import TokenRow
from mta.prompt_tokens import PromptTokenizer
from mta.prompting import render
from mta.records import Example, User
from mta.seeds import stable_seed
from mta.tasks.examples import TrainingExamples, training_examples
from mta.tasks.task import Task

SMALLEST_SPLIT = 4
"""Examples a user must have before any are held out."""


@dataclass(frozen=True, slots=True)
class UserRows:
    """One user's training data as token rows."""

    user_id: str
    rows: tuple[TokenRow, ...]
    held_out: tuple[TokenRow, ...]
    source: str
    """How the examples were made."""
    skipped: int
    """History items that gave no example."""

    @property
    def cut_rows(self) -> int:
        """Rows whose prompt was cut to fit."""
        return sum(row.cut_words > 0 for row in (*self.rows, *self.held_out))


def user_rows(
    tokens: PromptTokenizer, task: Task, user: User, *, train: TrainConfig, prompts: PromptConfig
) -> UserRows:
    """Build a user's training rows (and held-out rows, where `train.held_out_share` asks for them).

    Args:
        tokens: tokenizer of the base model.
        task: what is asked.
        user: whose history is used.
        train: `max_items`, `held_out_share`, `allow_proxy` and `seed` are read.
        prompts: how examples are rendered.
    """
    made = _made_from(task, user, train, prompts)
    kept = _kept_ids(made, train)
    return _split(tokens, task, user, made, set(kept), _held_out(kept, user.user_id, train), train, prompts)


def fold_rows(
    tokens: PromptTokenizer, task: Task, user: User, *, train: TrainConfig, prompts: PromptConfig, folds: int
) -> list[UserRows]:
    """Build a user's rows once for each fold of the examples, which is held out: every example once.

    Args:
        tokens: tokenizer of the base model.
        task: what is asked.
        user: whose history is used.
        train: `max_items`, `allow_proxy` and `seed` are read.
        prompts: how examples are rendered.
        folds: folds asked for; a user has as many as examples at most.

    Returns:
        As many as there are folds; [] for a user of fewer than two examples.
    """
    made = _made_from(task, user, train, prompts)
    kept = _kept_ids(made, train)
    if len(kept) < 2:
        return []
    generator = torch.Generator().manual_seed(stable_seed(train.seed, "folds", user.user_id))
    order = [kept[place] for place in torch.randperm(len(kept), generator=generator).tolist()]
    return [
        _split(tokens, task, user, made, set(kept), set(order[fold::folds]), train, prompts)
        for fold in range(min(folds, len(kept)))
    ]


def _made_from(task: Task, user: User, train: TrainConfig, prompts: PromptConfig) -> TrainingExamples:
    return training_examples(task, user, history_k=prompts.history_k, seed=train.seed, allow_proxy=train.allow_proxy)


def _kept_ids(made: TrainingExamples, train: TrainConfig) -> list[str]:
    return [example.example_id for example in made.examples][-train.max_items :]


def _split(
    tokens: PromptTokenizer,
    task: Task,
    user: User,
    made: TrainingExamples,
    kept_ids: set[str],
    held_ids: set[str],
    train: TrainConfig,
    prompts: PromptConfig,
) -> UserRows:
    """Build rows of the kept examples but those held out, and rows of these."""
    learn, judge = made.examples, tuple[Example, ...]()
    if held_ids:
        shown = tuple(item for item in user.history if item.item_id not in held_ids)
        learn = _made_from(task, replace(user, history=shown), train, prompts).examples
        judge = tuple(
            example
            for item in user.history
            if item.item_id in held_ids
            for example in _made_from(task, replace(user, history=(*shown, item)), train, prompts).examples
            if example.example_id == item.item_id
        )
    learn = tuple(example for example in learn if example.example_id in kept_ids)
    return UserRows(
        user_id=user.user_id,
        rows=token_rows(tokens, task, learn, prompts),
        held_out=token_rows(tokens, task, judge, prompts),
        source=made.source,
        skipped=made.skipped,
    )


def token_rows(
    tokens: PromptTokenizer, task: Task, examples: Sequence[Example], prompts: PromptConfig
) -> tuple[TokenRow, ...]:
    """Render and tokenize examples with their answers."""
    return tuple(tokens.row(render(task, example, prompts), example.answer, prompts) for example in examples)


def _held_out(ids: Sequence[str], user_id: str, train: TrainConfig) -> set[str]:
    """Draw the held-out items, seeded by the user; none for users with too few."""
    count = min(round(len(ids) * train.held_out_share), len(ids) - 1)
    if count < 1 or len(ids) < SMALLEST_SPLIT:
        return set()
    generator = torch.Generator().manual_seed(stable_seed(train.seed, "held out", user_id))
    order = torch.randperm(len(ids), generator=generator)[:count].tolist()
    return {ids[place] for place in order}
