"""How well ways to serve a user would have answered the user's own items, none of which they had learned.

The items fall into folds. What is the same for all folds (base model, population adapter, merged anchors) is asked as
it is; a user's own adapter is trained anew without each fold, over what lies beneath it. Every way is asked about the
same held-out items with the same prompts, in which only the other folds are shown.

Example:
    >>> nats = held_out_nats(users, resources, {"base": {}, "merged-only": merged}, adapted={"mta": merged}, name="mta")
    >>> nats["ann"]
    {'base': 21.3, 'merged-only': 17.0, 'mta': 12.4}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mta.compact import form_for, kind_of, own_rank
from mta.config import TrainConfig
from mta.generation import Request, score_answers
from mta.lora.adapter import AdapterSum, Recipe
from mta.personalize import Resources
from mta.records import User
from mta.training_plan import TrainJob
from mta.training_store import TrainedSet, train_and_store
from mta.user_rows import UserRows, fold_rows

FOLDS = 3
USERS_PER_CHUNK = 16
"""Users whose adapters are held in memory at once."""


def held_out_nats(
    users: Sequence[User],
    resources: Resources,
    ways: Mapping[str, Mapping[str, Recipe]],
    *,
    adapted: Mapping[str, Mapping[str, Recipe]],
    name: str,
    folds: int = FOLDS,
) -> tuple[dict[str, dict[str, float]], float]:
    """Return what each user's own items cost under each way, every item held out once.

    Args:
        users: with histories.
        resources: base model and settings; early stopping plays no part here.
        ways: way -> user id -> adapter that stays as it is; without an entry a user is asked on the base model.
        adapted: way -> user id -> what lies beneath an adapter that is trained without each fold.
        name: sub-folder of the folds' adapters.
        folds: folds of each user's items.

    Returns:
        user id -> way -> summed negative log-likelihood in nats, for users of two items or more; and the seconds that
        the folds' training took.
    """
    train = replace(resources.adapt, held_out_share=0.0)
    data = {
        user.user_id: fold_rows(
            resources.base.tokens, resources.task, user, train=train, prompts=resources.prompts, folds=folds
        )
        for user in users
    }
    trained = {way: _train_folds(data, resources, train, beneath, f"{name}/{way}") for way, beneath in adapted.items()}
    found: dict[str, dict[str, float]] = {}
    names = [user_id for user_id, made in data.items() if made]
    with resources.progress("held-out items") as step:
        for start in range(0, len(names), USERS_PER_CHUNK):
            for user_id in names[start : start + USERS_PER_CHUNK]:
                found[user_id] = _nats_of_user(user_id, data[user_id], resources, train, ways, adapted, trained)
            step(min(start + USERS_PER_CHUNK, len(names)), len(names))
    return found, sum(one.seconds for one in trained.values())


def _job_id(user_id: str, fold: int) -> str:
    return f"{user_id} without {fold}"


def _train_folds(
    data: Mapping[str, Sequence[UserRows]],
    resources: Resources,
    train: TrainConfig,
    beneath: Mapping[str, Recipe],
    folder: str,
) -> TrainedSet:
    train = form_for(train, beneath)
    jobs = [
        TrainJob(
            _job_id(user_id, fold),
            rows.rows,
            train,
            frozen=beneath.get(user_id),
            init_key=user_id,
            kind=kind_of(train),
        )
        for user_id, made in data.items()
        for fold, rows in enumerate(made)
    ]
    with resources.progress("adaptation without each fold") as step:
        return train_and_store(
            resources.base,
            jobs,
            resources.folder / folder,
            engine=resources.engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )


def _nats_of_user(
    user_id: str,
    made: Sequence[UserRows],
    resources: Resources,
    train: TrainConfig,
    ways: Mapping[str, Mapping[str, Recipe]],
    adapted: Mapping[str, Mapping[str, Recipe]],
    trained: Mapping[str, TrainedSet],
) -> dict[str, float]:
    nats = {}
    for way, recipes in ways.items():
        recipe = recipes.get(user_id)
        whole = recipe.parts() if recipe else None
        nats[way] = _score(resources, [Request(row, whole) for rows in made for row in rows.held_out])
    for way, beneath in adapted.items():
        nats[way] = 0.0
        for fold, rows in enumerate(made):
            whole = _whole(trained[way], _job_id(user_id, fold), beneath.get(user_id), resources, train)
            nats[way] += _score(resources, [Request(row, whole) for row in rows.held_out])
    return nats


def _whole(
    trained: TrainedSet, job_id: str, beneath: Recipe | None, resources: Resources, train: TrainConfig
) -> AdapterSum | None:
    """Return what serves a user without one fold; a training that diverged leaves what lies beneath."""
    terms = list(beneath.parts().terms) if beneath else []
    stored = trained.adapters[job_id]
    if not stored.note.diverged:
        own = stored.recipe(resources.base, rank=own_rank(train, beneath), beneath=beneath)
        terms += own.parts().terms
    return AdapterSum(tuple(terms)) if terms else None


def _score(resources: Resources, requests: Sequence[Request]) -> float:
    return sum(score_answers(resources.base, requests, engine=resources.engine))
