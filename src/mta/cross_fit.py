"""How well ways to serve a user would have answered the user's own items, none of which they had learned.

The items fall into folds. What is the same for all folds (base model, population adapter, merged anchors) is asked as
it is; a user's own adapter is trained anew without each fold, over what lies beneath it. Every way is asked about the
same held-out items with the same prompts, in which only the other folds are shown. Which anchors are near is decided on
whole histories, texts of the held-out items included.

Example:
    >>> nats, seconds = held_out_nats(users, resources, {"base": {}, "merged-only": merged}, adapted={"mta": merged})
    >>> nats["ann"]
    {'base': 21.3, 'merged-only': 17.0, 'mta': 12.4}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mta.compact import form_for, kind_of, own_rank
from mta.config import BY_HISTORY, TrainConfig
from mta.errors import ConfigError
from mta.generation import Request, score_answers
from mta.lora.adapter import AdapterSum, Recipe
from mta.personalize import Resources
from mta.records import User
from mta.training_plan import TrainJob
from mta.training_store import TrainedSet, train_and_store
from mta.user_rows import UserRows, fold_rows

log = logging.getLogger(__name__)

FOLDS = 3
FOLDER = "folds"
"""Sub-folder of the adapters trained without each fold."""

Nats = dict[str, dict[str, float]]
"""User id -> way -> what the user's held-out items cost together, in nats."""


def held_out_nats(
    users: Sequence[User],
    resources: Resources,
    ways: Mapping[str, Mapping[str, Recipe]],
    *,
    adapted: Mapping[str, Mapping[str, Recipe]],
    folds: int = FOLDS,
) -> tuple[Nats, float]:
    """Return what each user's own items cost under each way, every item held out once.

    Args:
        users: with histories.
        resources: base model and settings; early stopping plays no part here.
        ways: way -> user id -> adapter that stays as it is; without an entry a user is asked on the base model.
        adapted: way -> user id -> what lies beneath an adapter that is trained without each fold.
        folds: folds of each user's items.

    Returns:
        The costs of users with two items or more, and the seconds that the folds' training took.

    Raises:
        ConfigError: merge weights are chosen on the very items that are held out here.
    """
    if resources.merge.weights in BY_HISTORY:
        raise ConfigError(
            f"weights {resources.merge.weights!r} are chosen on all of a user's items, so none is left to judge by; "
            "take --weights similarity for rows that judge ways to serve a user"
        )
    if resources.adapt.held_out_share:
        log.warning("adapters are judged without early stopping, which the users' own adapters have")
    train = replace(resources.adapt, held_out_share=0.0)
    tokens, task, prompts = resources.base.tokens, resources.task, resources.prompts
    data = {
        user.user_id: made
        for user in users
        if (made := fold_rows(tokens, task, user, train=train, prompts=prompts, folds=folds))
    }
    trained = {
        way: _Adapted(beneath, _train_folds(data, resources, train=form_for(train, beneath), beneath=beneath, way=way))
        for way, beneath in adapted.items()
    }
    found: Nats = {}
    with resources.progress("held-out items") as step:
        for done, (user_id, made) in enumerate(data.items(), start=1):
            found[user_id] = {
                way: _score(resources, made, [recipes[user_id].parts() if user_id in recipes else None] * len(made))
                for way, recipes in ways.items()
            }
            for way, one in trained.items():
                found[user_id][way] = _score(resources, made, one.adapters(user_id, len(made), resources, train))
            step(done, len(data))
    return found, sum(one.trained.seconds for one in trained.values())


def _job_id(user_id: str, fold: int) -> str:
    return f"{user_id} without {fold}"


def _train_folds(
    data: Mapping[str, Sequence[UserRows]],
    resources: Resources,
    *,
    train: TrainConfig,
    beneath: Mapping[str, Recipe],
    way: str,
) -> TrainedSet:
    """Train each user's adapter without each fold; where that leaves nothing to learn, there is none."""
    kind = kind_of(train)
    jobs = [
        TrainJob(_job_id(name, fold), rows.rows, train, frozen=beneath.get(name), init_key=name, kind=kind)
        for name, made in data.items()
        for fold, rows in enumerate(made)
        if rows.rows
    ]
    with resources.progress("adaptation without each fold") as step:
        return train_and_store(
            resources.base,
            jobs,
            resources.folder / FOLDER / way,
            engine=resources.engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )


@dataclass(frozen=True, slots=True)
class _Adapted:
    """A way that trains: what lies beneath its adapters, and these, trained without each fold."""

    beneath: Mapping[str, Recipe]
    trained: TrainedSet

    def adapters(self, user_id: str, folds: int, resources: Resources, train: TrainConfig) -> list[AdapterSum | None]:
        """Return what serves a user without each fold.

        Where nothing was learned, or the training diverged, that is what lies beneath.
        """
        under = self.beneath.get(user_id)
        found = []
        for fold in range(folds):
            terms = list(under.parts().terms) if under else []
            stored = self.trained.adapters.get(_job_id(user_id, fold))
            if stored and not stored.note.diverged:
                rank = own_rank(form_for(train, self.beneath), under)
                terms += stored.recipe(resources.base, rank=rank, beneath=under).parts().terms
            found.append(AdapterSum(tuple(terms)) if terms else None)
        return found


def _score(resources: Resources, made: Sequence[UserRows], adapters: Sequence[AdapterSum | None]) -> float:
    """Return what the held-out items of all folds cost, each fold under its adapter."""
    requests = [Request(row, adapter) for rows, adapter in zip(made, adapters, strict=True) for row in rows.held_out]
    return sum(score_answers(resources.base, requests, engine=resources.engine))
