"""The strong classical control: sentence vectors, a regression over all pool items, and the person's own habits.

No language model. A method for labels or ratings that does not beat it has not shown that it needs one. It gives two
rows of a table: `classical-pool`, the regression alone, the same for everybody; and `classical`, which adds what the
person's history says. See `classical_labels` for labels and ratings and `classical_pairs` for LaMP-1's choice between
two options. Free text has no such control. Every setting is chosen on people of the pool who were left out of the fit;
targets play no part.

Example:
    >>> fitted = fit_classical(get_task("lamp-2"), pool, encoder=encoder)
    >>> fitted.chosen
    {'C': 3.0, 'smoothing': 10.0, 'strength': 1.25}
    >>> [prediction.text for prediction in fitted.answers(user, examples)]
    ['comedy', 'sci-fi']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mta.baselines.classical_labels import fit_label_model
from mta.baselines.classical_pairs import fit_pair_model
from mta.baselines.classical_setup import ClassicalConfig, FitSetup, Model, Sentences
from mta.baselines.linear_models import Array
from mta.encoders import Encoder
from mta.errors import ConfigError, DataError
from mta.progress import Progress, silent
from mta.records import Example, Prediction, User
from mta.tasks.examples import check_history
from mta.tasks.task import Task
from mta.vector_cache import VectorCache

CLASSICAL_ROWS: Mapping[str, bool] = {"classical-pool": False, "classical": True}
"""Row of a table -> whether the person's own history plays a part."""


@dataclass(frozen=True, eq=False)
class Classical:
    """One fit for all users."""

    task: Task
    model: Model
    chosen: Mapping[str, float]
    """Setting -> the value chosen on people of the pool."""
    held_out: Mapping[str, float]
    """Measure -> its value for the chosen settings on pool people left out of the fit, each person counting the same;
    "_pool" is without the person's own history."""

    def answers(self, user: User, examples: Sequence[Example], *, personal: bool = True) -> list[Prediction]:
        """Answer examples of one person.

        Args:
            user: whose history is used; the queries are not looked at.
            examples: what is asked.
            personal: False answers as for anybody (`classical-pool`).

        Raises:
            DataError: an example or a history item lacks a field the task needs.
        """
        check_history(self.task, user)
        if not examples:
            return []
        scores, numbers = self.model.answer(user, examples, personal=personal)
        return [
            self._prediction(example, scores[row], None if numbers is None else float(numbers[row]))
            for row, example in enumerate(examples)
        ]

    def _prediction(self, example: Example, log_shares: Array, number: float | None) -> Prediction:
        scores = dict(zip(self.task.labels, log_shares.tolist(), strict=True))
        best = self.task.labels[int(log_shares.argmax())]
        return Prediction(
            query_id=example.example_id,
            user_id=example.user_id,
            gold=example.answer,
            text=best if number is None else f"{number:.6g}",
            label=best,
            nll=-scores[example.answer] if example.answer in scores else None,
            label_scores=scores,
        )


def classical_fits(task: Task) -> bool:
    """Say whether the control means something for a task: all but free text."""
    return bool(task.labels)


def fit_classical(
    task: Task,
    pool: Sequence[User],
    *,
    encoder: Encoder,
    cache: VectorCache | None = None,
    seed: int = 0,
    config: ClassicalConfig | None = None,
    progress: Progress = silent,
) -> Classical:
    """Fit the control on the histories of a pool; its queries are not looked at, and its order does not matter.

    Args:
        task: a task with labels.
        pool: users other than those to be answered.
        encoder: makes the sentence vectors.
        cache: where vectors are kept between runs; None keeps none.
        seed: decides the folds and LaMP-1's wrong options.
        config: what is tried; None is the defaults.
        progress: told of the vectors and of the fit.

    Raises:
        ConfigError: the task's answers are free text.
        DataError: the pool cannot be fitted: users share an id, the usable items are of one person or have one label,
            or, for LaMP-1, the items name no citations.
    """
    if not classical_fits(task):
        raise ConfigError(
            f"no classical control for {task.task_id}: its answers are free text; use it with a task of labels or "
            "ratings"
        )
    users = sorted(pool, key=lambda user: user.user_id)
    for user in users:
        check_history(task, user)
    for one, other in pairwise(users):
        if one.user_id == other.user_id:
            raise DataError(f"the pool has user {one.user_id!r} more than once; give every user one record")
    setup = FitSetup(
        task=task,
        users=users,
        sentences=Sentences(encoder, cache),
        config=config or ClassicalConfig(),
        seed=seed,
        progress=progress,
    )
    model, chosen, held_out = (fit_pair_model if task.task_id == "lamp-1" else fit_label_model)(setup)
    return Classical(task, model, chosen, held_out)
