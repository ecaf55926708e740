"""Scores on parts of the queries: long and short histories, near and far anchors, texts seen and unseen.

A partition gives every query one label; it is a plain mapping (user id, query id) -> label, in the order in which the
labels are to be shown. The functions here make the usual ones from the data; any other mapping will do.

Slices are small, and nothing corrects for looking at many of them: they show where to look, not what is proven.

Example:
    >>> partitions = {"history length": by_history_length(targets), "in the pool": by_seen_text(task, targets, pool)}
    >>> scores["slices"] = slice_scores(records, partitions, metrics=task.metrics, labels=task.labels)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mta.errors import ConfigError, DataError
from mta.evaluation.scores import MethodRecord, points
from mta.evaluation.statistics import RESAMPLES, QueryKey, Scores, score_predictions
from mta.records import Prediction, User
from mta.tasks.task import Task

Partition = Mapping[QueryKey, str]
"""(user id, query id) -> label of its slice."""

THIRDS: Mapping[int, tuple[str, ...]] = {1: ("all",), 2: ("low", "high"), 3: ("low", "middle", "high")}
"""How many different groups there are -> their names."""
SEEN, UNSEEN = "seen", "unseen"


def slice_scores(
    records: Sequence[MethodRecord],
    partitions: Mapping[str, Partition],
    *,
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Score every method on every slice, in the form of `slices` in `scores.json`.

    Args:
        records: the methods of a run.
        partitions: name -> partition; each must have a label for every query that was answered.
        metrics: official metrics of the task.
        labels: all labels of the task; macro-F1 stays a mean over all of them, also where a slice lacks some.
        people: user id -> person, where several user ids are one person.
        resamples: bootstrap draws of the intervals.
        seed: seed of the bootstrap.

    Returns:
        Partition -> label -> {"people", "queries", "methods": {name: {"metrics", "ci95"}}}; labels without an
        answered query are left out.

    Raises:
        DataError: a partition has no label for an answered query.
    """
    score = partial(score_predictions, metrics=metrics, labels=labels, people=people, resamples=resamples, seed=seed)
    for name, partition in partitions.items():
        _require_whole(name, partition, records)
    return {
        name: {
            label: scored
            for label in dict.fromkeys(partition.values())
            if (scored := _slice(records, _members(partition, label), score))
        }
        for name, partition in partitions.items()
    }


def _require_whole(name: str, partition: Partition, records: Sequence[MethodRecord]) -> None:
    """Check that no answered query is without a label: it would vanish from the slices without a word."""
    for record in records:
        for row in record.predictions:
            if (row.user_id, row.query_id) not in partition:
                raise DataError(
                    f"the partition {name!r} has {len(partition)} queries, but none is query {row.query_id!r} of user "
                    f"{row.user_id!r}, which method {record.name!r} answered; make it from the users who were asked"
                )


def _members(partition: Partition, label: str) -> set[QueryKey]:
    return {query for query, its_label in partition.items() if its_label == label}


def _slice(
    records: Sequence[MethodRecord], members: set[QueryKey], score: Callable[[Sequence[Prediction]], Scores]
) -> dict[str, Any] | None:
    """One slice's entry, or None where no query of it was answered."""
    found = {
        record.name: score(rows)
        for record in records
        if (rows := [row for row in record.predictions if (row.user_id, row.query_id) in members])
    }
    if not found:
        return None
    first = next(iter(found.values()))
    methods = {name: points(scores) for name, scores in found.items()}
    return {"people": first.people, "queries": first.queries, "methods": methods}


def usual_partitions(
    task: Task,
    targets: Sequence[User],
    *,
    pool: Sequence[User],
    anchors: Sequence[User],
    similarities: Mapping[str, float],
) -> dict[str, dict[QueryKey, str]]:
    """Make the partitions every run can have.

    Args:
        task: what was asked.
        targets: the users who were asked.
        pool: the users the bank was built from.
        anchors: those of them who have an adapter in the bank.
        similarities: target user id -> similarity to the nearest anchor.

    Raises:
        DataError: a target has no similarity, or a query cannot be read.
    """
    return {
        "history length": by_history_length(targets),
        "similarity to the nearest anchor": by_similarity(targets, similarities),
        "text in an anchor's history": by_seen_text(task, targets, anchors),
        "text in a pool user's history": by_seen_text(task, targets, pool),
    }


def by_history_length(users: Sequence[User], *, bins: Mapping[str, float] | None = None) -> dict[QueryKey, str]:
    """Part queries by how many items their user's history has; the labels hold the bounds.

    Args:
        users: the users who were asked.
        bins: name -> most items, ascending, the last one `math.inf`; without it, thirds of the users.

    Raises:
        ConfigError: the bins do not ascend or leave out long histories.
    """
    lengths = {user.user_id: len(user.history) for user in users if user.queries}
    if bins is None:
        return _by_user(users, _thirds(lengths, lambda low, high: f"{_span(low, high, '.0f')} items"))
    return _by_user(users, _named(lengths, bins))


def by_similarity(users: Sequence[User], similarities: Mapping[str, float]) -> dict[QueryKey, str]:
    """Part queries by how similar their user is to the nearest anchor, into thirds of the users.

    Args:
        users: the users who were asked.
        similarities: user id -> similarity to the nearest anchor.

    Raises:
        DataError: a user has none, or it is not finite.
    """
    asked = [user.user_id for user in users if user.queries]
    for user_id in asked:
        if not math.isfinite(similarities.get(user_id, math.nan)):
            raise DataError(
                f"user {user_id!r} has no similarity to an anchor (there are {len(similarities)}); match all users "
                "against the bank first"
            )
    values = {user_id: similarities[user_id] for user_id in asked}
    return _by_user(users, _thirds(values, lambda low, high: _span(low, high, ".3f")))


def by_seen_text(task: Task, users: Sequence[User], holders: Sequence[User]) -> dict[QueryKey, str]:
    """Part queries by whether their own text stands in one of the holders' histories; case and spacing do not count.

    What was seen may have been learned by heart, by a model trained on it or a classifier that looks it up. The text is
    the task's input field: the film's description, the paper's title. The answer may differ.

    Args:
        task: what was asked.
        users: the users who were asked.
        holders: users whose histories are looked into, for example the anchors, or the whole pool.

    Raises:
        DataError: a query cannot be read.
    """
    known = {_plain(item.get(task.input_field)) for user in holders for item in user.history} - {""}
    found = {
        (user.user_id, query.query_id): _plain(task.parse_query(query.text)[task.input_field]) in known
        for user in users
        for query in user.queries
    }
    ordered = sorted(found, key=lambda query: not found[query])  # stable: the seen ones first
    return {query: SEEN if found[query] else UNSEEN for query in ordered}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _by_user(users: Sequence[User], label_of: Mapping[str, str]) -> dict[QueryKey, str]:
    """Give every query its user's label, in the order of the labels."""
    queries = {user.user_id: [(user.user_id, query.query_id) for query in user.queries] for user in users}
    return {query: label for user_id, label in label_of.items() for query in queries[user_id]}


def _thirds(values: Mapping[str, float], span: Callable[[float, float], str]) -> dict[str, str]:
    """Label users by thirds, the lowest first; equal values stay together, so that groups may be fewer or uneven."""
    if not values:
        return {}
    ordered, count = sorted(values.values()), len(values)
    cuts = [ordered[(count + 2) // 3 - 1], ordered[(2 * count + 2) // 3 - 1]]  # the ends of the first and second third
    group = {user_id: sum(value > cut for cut in cuts) for user_id, value in values.items()}
    members = {place: [values[user_id] for user_id in values if group[user_id] == place] for place in range(3)}
    filled = [place for place in range(3) if members[place]]
    titles = {
        place: f"{title}: {span(min(members[place]), max(members[place]))}"
        for place, title in zip(filled, THIRDS[len(filled)], strict=True)
    }
    return {user_id: titles[group[user_id]] for user_id in sorted(values, key=lambda user_id: group[user_id])}


def _named(values: Mapping[str, float], bins: Mapping[str, float]) -> dict[str, str]:
    ends = list(bins.values())
    if not ends or ends != sorted(set(ends)) or ends[-1] != math.inf:
        raise ConfigError(
            f"cannot part histories by {dict(bins)}; wanted name -> most items, ascending, the last one without end "
            "(math.inf)"
        )
    starts = [0, *(math.floor(end) + 1 for end in ends[:-1])]
    titles = [
        f"{name}: {start} items or more" if math.isinf(end) else f"{name}: {_span(start, end, '.0f')} items"
        for name, start, end in zip(bins, starts, ends, strict=True)
    ]
    group = {
        user_id: next(place for place, end in enumerate(ends) if value <= end) for user_id, value in values.items()
    }
    return {user_id: titles[group[user_id]] for user_id in sorted(values, key=lambda user_id: group[user_id])}


def _span(low: float, high: float, form: str) -> str:
    first, last = f"{low:{form}}", f"{high:{form}}"
    return first if first == last else f"{first} to {last}"
