"""Any method that scores labels, pooled with what is known of person and item without a language model.

Sources beside the method's own label scores (see `pooled_labels`):

- "prior": the person's label prior (`label_prior`);
- "memory": what similar items of the pool and her own got (`label_memory`);
- "classical": the regression of the classical control (`classical`), as for anybody where there is a prior, which holds
  what is personal; with the person's history for LaMP-1, whose labels have no meaning of their own and so no prior.

Their weights are chosen on users of the pool, the judges, as strength and temperature are in `prior_method`; targets
play no part. What the sources learn from a pool they have not learned from the judge whom they are asked about. A
method for which there is no source, as for free text, is calibrated alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from mta.baselines.classical import classical_fits, fit_classical
from mta.baselines.classical_setup import Sentences
from mta.baselines.label_memory import fit_memory
from mta.baselines.label_prior import log_prior_ratio, pool_shares, prior_fits
from mta.baselines.linear_models import Array, people_folds
from mta.baselines.pooled_labels import fit_weights
from mta.baselines.prior_method import judges_of, with_calibration
from mta.data.people import person_names, rule_for
from mta.encoders import Encoder, load_encoder
from mta.errors import DataError
from mta.evaluation.predict import predict
from mta.label_scores import by_scores, log_shares, median_label
from mta.personalize import Method, PersonalizedUsers, Resources
from mta.records import Example, Prediction, User
from mta.tasks.examples import query_examples
from mta.tasks.task import Task

log = logging.getLogger(__name__)

MODEL = "model"
START = 0.5
"""Weight of the method and of each source where nobody can judge; as they know much of the same, less than 1."""
FOLDS = 4
"""Groups of judges, each asked about by sources that have not learned from it."""

Source = Callable[[User, Sequence[Example]], Array]
"""A user and Q >= 1 examples -> (Q, L) nats."""


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One kind of source."""

    fits: Callable[[Task], bool]
    """Whether it means something for a task."""
    fit: Callable[[Resources, Sequence[User]], Source]
    """Fits it on a pool."""


def with_memory(method: Method) -> Method:
    """Return the method with label scores pooled with the person's prior and with what similar items got."""
    return partial(_serve, method, asked=("prior", "memory"))


def with_all_sources(method: Method) -> Method:
    """Return the method with label scores pooled with those of every source there is."""
    return partial(_serve, method, asked=tuple(SOURCES))


@dataclass(frozen=True, slots=True)
class KnownScores:
    """What the sources say of every query."""

    task: Task
    names: tuple[str, ...]
    """Of the S sources."""
    of_query: Mapping[tuple[str, str], Array]
    """User id, query id -> (S, L) nats."""

    def beside(self, row: Prediction) -> Array:
        """Return (1 + S, L) nats: the prediction's own label scores, and the sources'."""
        model = log_shares(np.array([row.label_scores[label] for label in self.labels]))
        return np.asarray(np.concatenate([model[None], self.of_query[row.user_id, row.query_id]]))

    @property
    def labels(self) -> tuple[str, ...]:
        """The L labels."""
        return self.task.labels

    @property
    def ratings(self) -> bool:
        """Whether the labels are numbers, in ascending order."""
        return self.task.kind == "rating"

    @property
    def start(self) -> Array:
        """(1 + S,) weights where nobody can judge."""
        return np.full(1 + len(self.names), START)


def _serve(method: Method, users: Sequence[User], resources: Resources, *, asked: Sequence[str]) -> PersonalizedUsers:
    names = fitting_sources(resources.task, asked)
    if not names:
        return with_calibration(method)(users, resources)
    weights, seconds = _choose(method, resources, names)
    known = known_scores(users, resources, names, pool=resources.pool)
    people = method(users, resources)
    change = partial(pooled, known=known, weights=weights)
    shown = dict(zip((MODEL, *names), weights.tolist(), strict=True))
    return replace(
        people,
        users={name: replace(person, finish=change) for name, person in people.users.items()},
        shared_seconds=people.shared_seconds + seconds,
        chosen={**people.chosen, **{f"weight of {name}": round(weight, 4) for name, weight in shown.items()}},
    )


def fitting_sources(task: Task, asked: Sequence[str]) -> tuple[str, ...]:
    """Return those of the sources asked for that mean something for a task."""
    return tuple(name for name in asked if SOURCES[name].fits(task))


def known_scores(
    users: Sequence[User], resources: Resources, names: Sequence[str], *, pool: Sequence[User]
) -> KnownScores:
    """Ask sources, fitted on a pool, about every query of the users.

    Raises:
        DataError: the pool is too small for one of them.
    """
    task = resources.task
    sources = [SOURCES[name].fit(resources, pool) for name in names]
    found: dict[tuple[str, str], Array] = {}
    for user in users:
        if examples := query_examples(task, user, history_k=0):
            scores = np.stack([source(user, examples) for source in sources], axis=1)  # (Q, S, L)
            found |= {(user.user_id, one.example_id): row for one, row in zip(examples, scores, strict=True)}
    return KnownScores(task, tuple(names), found)


def judged_scores(judges: Sequence[User], resources: Resources, names: Sequence[str]) -> KnownScores:
    """Ask sources about every query of judges, each time fitted on the pool without a part of them.

    Raises:
        DataError: the judges are one person, or the pool without a part of them is too small for a source.
    """
    rule = rule_for(resources.task.task_id)
    person_of = person_names(resources.pool, rule=rule)
    fold_of = people_folds(judges, rule=rule, folds=FOLDS, seed=0)
    found: dict[tuple[str, str], Array] = {}
    for fold in sorted(set(fold_of.values())):
        asked = [user for user in judges if fold_of[user.user_id] == fold]
        persons = {person_of[user.user_id] for user in asked}
        rest = [user for user in resources.pool if person_of[user.user_id] not in persons]
        found |= known_scores(asked, resources, names, pool=rest).of_query
    return KnownScores(resources.task, tuple(names), found)


def _choose(method: Method, resources: Resources, names: Sequence[str]) -> tuple[Array, float]:
    """Choose the weights on the judges; return them and the seconds that the judges' training took."""
    judges = judges_of(resources)
    try:
        known = judged_scores(judges, resources, names)
    except DataError as error:
        start = KnownScores(resources.task, tuple(names), {}).start
        log.warning(
            "besides the anchors, %d people of the pool can judge, and that is too few (%s); sources get weights %s",
            *(len(judges), error, start.tolist()),
        )
        return start, 0.0
    people = method(judges, resources)
    with resources.progress("weights of sources") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    weights = weights_for(made.rows, known)
    log.info("weights of %s: %s, chosen on %d pool users", (MODEL, *names), weights.round(3).tolist(), len(judges))
    return weights, people.train_seconds


def weights_for(rows: Sequence[Prediction], known: KnownScores) -> Array:
    """Return the (1 + S,) weights of method and sources under which the gold labels of predictions are likeliest."""
    golds = np.array([known.labels.index(row.gold) for row in rows])
    return fit_weights(np.stack([known.beside(row) for row in rows]), golds, start=known.start)


def pooled(row: Prediction, *, known: KnownScores, weights: Array) -> Prediction:
    """Return the answer by the weighted sum of all sources: the best label, of ratings the median.

    A prediction without label scores comes back unchanged.
    """
    if not row.label_scores:
        return row
    logs = log_shares(np.einsum("k,kl->l", weights, known.beside(row)))
    answered = by_scores(row, dict(zip(known.labels, logs.tolist(), strict=True)))
    return replace(answered, text=median_label(answered.label_scores)) if known.ratings else answered


def _prior(resources: Resources, pool: Sequence[User]) -> Source:
    task = resources.task
    shares = pool_shares(task, pool)

    def scores(user: User, examples: Sequence[Example]) -> Array:
        ratio = log_prior_ratio(user, shares, task)
        return np.tile([ratio[label] for label in task.labels], (len(examples), 1))

    return scores


def _memory(resources: Resources, pool: Sequence[User]) -> Source:
    with resources.progress("memory"):
        memory = fit_memory(resources.task, pool, Sentences(_encoder(resources), resources.cache))
    log.info("memory of %d items: %s, nll %.3f on people left out", len(memory.labels), memory.chosen, memory.nll)
    return memory.log_ratio


def _classical(resources: Resources, pool: Sequence[User]) -> Source:
    fitted = fit_classical(
        resources.task, pool, encoder=_encoder(resources), cache=resources.cache, progress=resources.progress
    )
    personal = not prior_fits(resources.task)
    return lambda user, examples: fitted.model.answer(user, examples, personal=personal).log_shares


def _encoder(resources: Resources) -> Encoder:
    return resources.encoder or load_encoder(resources.match.encoder, device=resources.base.device)


SOURCES: Mapping[str, SourceKind] = MappingProxyType(
    {
        "prior": SourceKind(prior_fits, _prior),
        "memory": SourceKind(prior_fits, _memory),
        "classical": SourceKind(classical_fits, _classical),
    }
)
"""Every source by its name."""
