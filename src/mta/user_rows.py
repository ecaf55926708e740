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
    maker = _Maker(tokens, task, user, train, prompts)
    return maker.rows(held_out=_held_out(maker.kept, user.user_id, train))


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
    maker = _Maker(tokens, task, user, train, prompts)
    if len(maker.kept) < 2:
        return []
    generator = torch.Generator().manual_seed(stable_seed(train.seed, "folds", user.user_id))
    order = [maker.kept[place] for place in torch.randperm(len(maker.kept), generator=generator).tolist()]
    return [maker.rows(held_out=set(order[fold::folds])) for fold in range(min(folds, len(order)))]


class _Maker:
    """Makes one user's rows, with these or those items held out."""

    def __init__(
        self, tokens: PromptTokenizer, task: Task, user: User, train: TrainConfig, prompts: PromptConfig
    ) -> None:
        self._tokens, self._task, self._user, self._train, self._prompts = tokens, task, user, train, prompts
        self._made = self._examples(user)
        self.kept = [example.example_id for example in self._made.examples][-train.max_items :]
        """Ids of the items that give rows."""

    def _examples(self, user: User) -> TrainingExamples:
        train = self._train
        return training_examples(
            self._task, user, history_k=self._prompts.history_k, seed=train.seed, allow_proxy=train.allow_proxy
        )

    def rows(self, *, held_out: set[str]) -> UserRows:
        """Return rows of the kept items but those held out, and rows of these."""
        learn, judge = self._made.examples, tuple[Example, ...]()
        if held_out:
            history = self._user.history
            shown = tuple(item for item in history if item.item_id not in held_out)
            learn = self._examples(replace(self._user, history=shown)).examples
            judge = tuple(
                example
                for item in history
                if item.item_id in held_out
                for example in self._examples(replace(self._user, history=(*shown, item))).examples
                if example.example_id == item.item_id
            )
        kept = set(self.kept)
        learn = tuple(example for example in learn if example.example_id in kept)
        return UserRows(
            user_id=self._user.user_id,
            rows=token_rows(self._tokens, self._task, learn, self._prompts),
            held_out=token_rows(self._tokens, self._task, judge, self._prompts),
            source=self._made.source,
            skipped=self._made.skipped,
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
