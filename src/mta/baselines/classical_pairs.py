"""The classical control of LaMP-1: tell which of two papers an author would cite.

"[1]" and "[2]" mean nothing by themselves, so what is learned is how to tell a right option from a wrong one by three
numbers: how similar the option is to the paper's title (all that `classical-pool` sees), and how similar to the
author's own titles and citations, the closest and on average.

The questions to learn from are made of the pool's citing items: the right option is what the item cites, the wrong one
what somebody else cites and this person does not, drawn by chance; the task's own questions are made alike. The task's
training pairs are not, and must not be used here: both their options are the person's own citations, so that the
history cannot tell them apart, and similarity to it seems to mislead. (On real pool users' questions, weights learned
from the training pairs gave accuracy .79, those learned here .84, and the similarity to the title alone .83.)

Example:
    >>> option_features(title, option, own).round(1).tolist()  # vectors of length 1
    [0.7, 0.9, 0.2]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mta.baselines.classical_setup import Answers, FitSetup, Fitted, Sentences, left_out, person_weights, smallest
from mta.baselines.linear_models import Array, Ints, fit_choice
from mta.errors import DataError
from mta.records import Example, HistoryItem, User
from mta.seeds import stable_seed
from mta.tasks.texts import need

FEATURES = ("similarity to the title", "to the closest own text", "to the own texts on average")
POOL_FEATURES = 1
"""How many of them, the first ones, do not depend on the person."""


@dataclass(frozen=True, slots=True)
class MadeQuestion:
    """A question made of one citing item of a pool user."""

    user_id: str
    title: str
    right: str
    wrong: str
    own: tuple[str, ...]
    """The person's other texts; none of this item, nor of any item that cites the right option."""


@dataclass(frozen=True, slots=True, eq=False)
class PairModel:
    """Weights of what tells the right option from the wrong one."""

    sentences: Sentences
    weights: Array
    """(F,) with the person's history."""
    pool_weights: Array
    """(POOL_FEATURES,) without."""

    def answer(self, user: User, examples: Sequence[Example], *, personal: bool) -> Answers:
        """Choose between the options of each example; the labels are "[1]" and "[2]"."""
        asked = [[need(example.fields, name) for name in ("title", "option_1", "option_2")] for example in examples]
        own = own_texts(user.history) if personal else ()
        vectors = unit_vectors([*own, *(text for texts in asked for text in texts)], self.sentences.vectors)
        differences = np.stack([option_difference(*texts, own=own, vectors=vectors) for texts in asked])  # (N, F)
        margins = differences @ self.weights if personal else differences[:, :POOL_FEATURES] @ self.pool_weights
        return Answers(np.stack([_log_sigmoid(margins), _log_sigmoid(-margins)], axis=1))


def fit_pair_model(setup: FitSetup) -> Fitted:
    """Fit the control of LaMP-1, with penalties chosen on people left out, once without the history and once with it.

    Raises:
        DataError: no question can be made of the pool, or all are of one person.
    """
    made = make_questions(setup.users, setup.seed)
    texts = [text for question in made for text in (question.title, question.right, question.wrong, *question.own)]
    vectors = unit_vectors(texts, setup.embed)
    differences = np.stack([_right_minus_wrong(question, vectors) for question in made])  # (N, F)
    places = {user.user_id: place for place, user in enumerate(setup.users)}
    persons = np.array([places[question.user_id] for question in made])
    folds, weights = setup.folds_of(persons), person_weights(persons)
    chosen: dict[str, float] = {}
    held_out: dict[str, float] = {}
    fits = []
    with setup.fitting(2) as tick:
        for name, size in (("_pool", POOL_FEATURES), ("", len(FEATURES))):
            margins = {C: _margins_by_others(differences[:, :size], folds, C) for C in setup.config.C}
            nll = {C: float(-_log_sigmoid(margins[C]) @ weights) for C in margins}
            C = smallest(nll)
            chosen[f"C{name}"], held_out[f"nll{name}"] = C, nll[C]
            held_out[f"accuracy{name}"] = float((margins[C] > 0) @ weights)
            fits.append(fit_scaled(differences[:, :size], C))
            tick()
    return Fitted(PairModel(setup.sentences, weights=fits[1], pool_weights=fits[0]), chosen, held_out)


def make_questions(pool: Sequence[User], seed: int) -> list[MadeQuestion]:
    """Make a question of each item that names a citation; the same for the same seed, whatever the pool's order.

    Raises:
        DataError: no question can be made.
    """
    users = sorted(pool, key=lambda user: user.user_id)
    titles = {_key(text): text for user in users for item in user.history if (text := item.get("citation").strip())}
    keys = sorted(titles)
    made = []
    for user in users:
        cited = {_key(item.get("citation")) for item in user.history}
        for item in user.history:
            right, title = item.get("citation").strip(), item.get("title").strip()
            if not right or not title:
                continue
            start = stable_seed(seed, "wrong option", user.user_id, item.item_id)
            turned = (keys[(start + step) % len(keys)] for step in range(len(keys)))
            wrong = next((key for key in turned if key not in cited), None)
            if wrong is not None:
                others = [other for other in user.history if _key(other.get("citation")) != _key(right)]
                made.append(MadeQuestion(user.user_id, title, right, titles[wrong], own_texts(others)))
    if not made:
        items = sum(len(user.history) for user in pool)
        raise DataError(
            f"no classical control for lamp-1: none of the {items} items of {len(pool)} pool users gives a question; "
            "wanted items with a title and a citation, cited by different people - give a pool whose items name "
            "citations, or leave the method out"
        )
    return made


def own_texts(history: Sequence[HistoryItem]) -> tuple[str, ...]:
    """Return the titles and citations of a history, blank ones left out."""
    texts = (item.get(name).strip() for item in history for name in ("title", "citation"))
    return tuple(text for text in texts if text)


def option_features(title: Array, option: Array, own: Array) -> Array:
    """Return (F,) features of one option: cosines with the title and with the person's own texts.

    Args:
        title: (D,) vector of the query's title, of length 1 as all here.
        option: (D,) vector of the option.
        own: (N, D) vectors of the person's texts; with none, the last two features are 0.
    """
    similarities = own @ option if len(own) else np.zeros(1)
    return np.array([title @ option, similarities.max(), similarities.mean()])


def option_difference(
    title: str, first: str, second: str, *, own: Sequence[str], vectors: Mapping[str, Array]
) -> Array:
    """Return (F,) features of the first option minus those of the second; `vectors` holds every text's unit vector."""
    known = np.array([vectors[text] for text in own])
    one, other = (option_features(vectors[title], vectors[option], known) for option in (first, second))
    return np.asarray(one - other)


def fit_scaled(differences: Array, C: float) -> Array:
    """Fit (F,) weights for (N, F) differences; the penalty sees each feature with a mean square of 1."""
    sizes = np.sqrt((differences**2).mean(axis=0))
    sizes = np.where(sizes > 0, sizes, 1.0)
    return np.asarray(fit_choice(differences / sizes, C) / sizes)


def unit_vectors(texts: Sequence[str], embed: Callable[[Sequence[str]], Array]) -> dict[str, Array]:
    """Return text -> (D,) vector of length 1 (or 0, where a text has none)."""
    distinct = list(dict.fromkeys(texts))
    vectors = embed(distinct)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return dict(zip(distinct, vectors / np.where(lengths > 0, lengths, 1.0), strict=True))


def _right_minus_wrong(made: MadeQuestion, vectors: Mapping[str, Array]) -> Array:
    return option_difference(made.title, made.right, made.wrong, own=made.own, vectors=vectors)


def _margins_by_others(differences: Array, folds: Ints, C: float) -> Array:
    return left_out(folds, lambda on, to: differences[to] @ fit_scaled(differences[on], C))


def _log_sigmoid(margins: Array) -> Array:
    return np.asarray(-np.logaddexp(0.0, -margins))


def _key(title: str) -> str:
    """A title for comparison: case and spacing do not count."""
    return " ".join(title.casefold().split())
