"""Scores with intervals, and paired differences between two methods, where the unit is the person.

Queries of one person are not independent, so every interval resamples people and takes all queries of a
drawn person together. Scores stay pooled over queries, as the official ones are: a person with five queries
weighs five times as much as a person with one.

All measures are sums of per-query rows (see `mta.metrics`), so a bootstrap is one product of a matrix of
drawn counts with a matrix of per-person sums.

Answers of several seeds are pooled, and a person is drawn with all of them: seeds are no further people.

Example:
    >>> scores = score_predictions(predictions, metrics=["accuracy"], labels=["[1]", "[2]"])
    >>> scores.metrics["accuracy"], scores.ci95["accuracy"]
    (0.61, (0.52, 0.7))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mta.errors import ConfigError, DataError
from mta.evaluation.measures import MEASURES, find_measure, measure_names
from mta.metrics import Array
from mta.records import Prediction

IntArray = NDArray[np.int64]
QueryKey = tuple[str, str]
"""User id and query id."""
RESAMPLES = 2000
PERMUTATIONS = 10_000
CELLS_PER_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class Scores:
    """What one method scored."""

    metrics: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float] | None]
    """95 % percentile interval over people; None with fewer than two people."""
    people: int
    queries: int
    seeds: tuple[int, ...] = ()
    """Seeds of the training runs that answered, ascending; () where the answers do not say."""
    by_seed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Metric -> the score of each seed alone, in the order of `seeds`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much method `a` scored above method `b` on the same queries."""

    metric: str
    difference: float
    """Score of `a` minus score of `b`, in the metric's own unit; for errors and NLL a minus is a gain of `a`."""
    ci95: tuple[float, float] | None
    """95 % percentile interval over people; None with fewer than two people."""
    p_value: float
    """Two-sided paired permutation p-value over people, not corrected for other comparisons."""
    people: int
    queries: int


def person_of(prediction: Prediction, people: Mapping[str, str] | None = None) -> str:
    """Return who answered: the person `people` names for the user id, else the user id itself."""
    return (people or {}).get(prediction.user_id, prediction.user_id)


def count_people(predictions: Sequence[Prediction], people: Mapping[str, str] | None = None) -> int:
    """Count distinct people."""
    return len({person_of(prediction, people) for prediction in predictions})


def count_queries(predictions: Sequence[Prediction]) -> int:
    """Count distinct queries; the same query answered under several seeds counts once."""
    return len({(prediction.user_id, prediction.query_id) for prediction in predictions})


def score_predictions(
    predictions: Sequence[Prediction],
    *,
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    seed_of: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score one method's predictions, with intervals that resample people.

    Besides the named metrics it gives the accuracy of the highest-scoring label (`label_accuracy`), its error
    for ratings (`label_mae`) and `nll`, each where all predictions carry what it needs. Predictions of several
    seeds may be given together: they are pooled, and a person is drawn with all seeds.

    Args:
        predictions: answers of one method, each with its gold answer.
        metrics: official metrics of the task, names from `METRICS`.
        labels: all labels of the task; empty for free text.
        people: user id -> person, for files in which several user ids are one person; others stand for themselves.
        seed_of: seed of the training run behind each prediction, for scores of each seed alone.
        resamples: bootstrap draws.
        seed: seed of the draws.

    Raises:
        NotFound: a metric does not exist.
        DataError: no predictions, a gold answer a metric cannot use, or seeds that answered different queries.
        ConfigError: `resamples` is below 1.
    """
    table = _rows(_as_people(predictions, people), measure_names(metrics), labels)
    names, rows = list(table), list(table.values())
    joined = np.concatenate(rows, axis=1)
    sums = _sums_of(joined, _person_index(predictions, people))
    widths = [array.shape[1] for array in rows]
    points = _split_values(names, sums.sum(axis=0), widths)
    intervals = _intervals(names, sums, widths, resamples=resamples, seed=seed)
    seeds, seed_index = _seed_index(predictions, seed_of)
    alone = _split_values(names, _sums_of(joined, seed_index), widths) if seeds else {}
    return Scores(
        metrics={name: float(points[name]) for name in names},
        ci95=intervals,
        people=len(sums),
        queries=count_queries(predictions),
        seeds=seeds,
        by_seed={name: tuple(map(float, values)) for name, values in alone.items()},
    )


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1 below), or None with fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _seed_index(predictions: Sequence[Prediction], seed_of: Sequence[int] | None) -> tuple[tuple[int, ...], IntArray]:
    """The seeds, ascending, and (N,) the position of each prediction's seed among them."""
    if seed_of is None:
        return (), np.zeros(0, dtype=np.int64)
    if len(seed_of) != len(predictions):
        raise DataError(
            f"cannot score: {len(predictions)} predictions but {len(seed_of)} seeds; name the seed of each prediction, "
            "in the same order"
        )
    queries: dict[int, Counter[QueryKey]] = {}
    for prediction, seed in zip(predictions, seed_of, strict=True):
        queries.setdefault(seed, Counter())[prediction.user_id, prediction.query_id] += 1
    seeds = tuple(sorted(queries))
    for seed in seeds:
        odd = sorted(queries[seed].keys() ^ queries[seeds[0]].keys())
        odd += [query for query, count in queries[seed].items() if count > 1]
        if odd:
            raise DataError(
                f"cannot score: seeds {seeds[0]} and {seed} must each answer every query once, but query "
                f"{odd[0][1]!r} of user {odd[0][0]!r} is missing or repeated; answer the same queries with every seed"
            )
    place = {seed: index for index, seed in enumerate(seeds)}
    return seeds, np.array([place[seed] for seed in seed_of], dtype=np.int64)


def _rows(predictions: Sequence[Prediction], names: Sequence[str], labels: Sequence[str]) -> dict[str, Array]:
    """Return what each measure reads off the predictions, seed by seed, as if each seed had been run alone."""
    repeat = _repeats(predictions)
    parts = [np.flatnonzero(repeat == number) for number in range(int(repeat.max(initial=0)) + 1)]
    found = [_rows_of_one([predictions[place] for place in part.tolist()], names, labels) for part in parts]
    order = np.argsort(np.concatenate(parts))
    return {
        name: np.concatenate([rows[name] for rows in found])[order]
        for name in found[0]
        if all(name in rows for rows in found)
    }


def _repeats(predictions: Sequence[Prediction]) -> IntArray:
    """(N,) how many answers to the same query stand before each: the seeds, counted through."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for prediction in predictions:
        key = (prediction.user_id, prediction.query_id)
        found.append(seen[key])
        seen[key] += 1
    return np.array(found, dtype=np.int64)


def _rows_of_one(predictions: Sequence[Prediction], names: Sequence[str], labels: Sequence[str]) -> dict[str, Array]:
    if not predictions:
        raise DataError("cannot score: no predictions; a score needs at least one query with a gold answer")
    found = {name: find_measure(name).rows(predictions, labels) for name in names}
    return {name: rows for name, rows in found.items() if rows is not None}


def _as_people(predictions: Sequence[Prediction], people: Mapping[str, str] | None) -> Sequence[Prediction]:
    """Return predictions whose user ids are those of the people behind them."""
    if not people:
        return predictions
    return [replace(prediction, user_id=person_of(prediction, people)) for prediction in predictions]


def _person_index(predictions: Sequence[Prediction], people: Mapping[str, str] | None) -> IntArray:
    """(N,) position of each prediction's person, 0 to P - 1 in order of appearance."""
    index: dict[str, int] = {}
    return np.array([index.setdefault(person_of(prediction, people), len(index)) for prediction in predictions])


def _sums_of(rows: Array, group: IntArray) -> Array:
    """(N, S) rows of queries -> (G, S) sums of the groups (people, or seeds) they belong to."""
    sums = np.zeros((int(group.max()) + 1, rows.shape[1]))
    np.add.at(sums, group, rows)
    return sums


def _split_values(names: Sequence[str], sums: Array, widths: Sequence[int]) -> dict[str, Array]:
    """Cut (..., sum of widths) sums into the measures' parts and read each as a score."""
    parts = np.split(sums, np.cumsum(widths)[:-1], axis=-1)
    return {name: MEASURES[name].value(part) for name, part in zip(names, parts, strict=True)}


def _intervals(
    names: Sequence[str], sums: Array, widths: Sequence[int], *, resamples: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    if len(sums) < 2:
        return dict.fromkeys(names)
    values = _split_values(names, _resampled_sums(sums, resamples=resamples, seed=seed), widths)
    return {name: _percentile_interval(values[name]) for name in names}


def _resampled_sums(sums: Array, *, resamples: int, seed: int) -> Array:
    """(P, S) sums of people -> (R, S) sums over P people drawn with replacement, R times."""
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; it must be 1 or more")
    rng = np.random.default_rng(seed)
    chances = np.full(len(sums), 1 / len(sums))
    blocks = [
        rng.multinomial(len(sums), chances, size=size).astype(np.float64) @ sums
        for size in _block_sizes(resamples, len(sums))
    ]
    return np.concatenate(blocks)


def _block_sizes(total: int, width: int) -> Iterator[int]:
    """Cut `total` rows of `width` numbers into blocks that stay small in memory."""
    size = max(1, CELLS_PER_BLOCK // width)
    for start in range(0, total, size):
        yield min(size, total - start)


def _percentile_interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    metric: str,
    *,
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same queries, person by person.

    The difference is that of the two pooled scores. Its interval draws people, with both methods' answers
    together. Its p-value asks how often a difference at least as large in size appears when, for each person
    anew, a coin decides which answers are called `a` and which `b`: all 2^people ways where they are no more
    than `permutations`, else that many random ones (counting the observed one, so p is never 0).

    Args:
        a, b: predictions of two methods for the same queries, in any order. Repeated queries (several seeds)
            are paired in order of appearance; where one method answered once, its answer stands for every seed of
            the other.
        metric: a name from `MEASURES`.
        labels: all labels of the task; empty for free text.
        people: user id -> person; users not in it stand for themselves.
        resamples: bootstrap draws.
        permutations: most coin-flip assignments tried.
        seed: seed of draws and flips.

    Raises:
        NotFound: the metric does not exist.
        DataError: the two answer different queries or have different golds, or one lacks what the metric needs.
        ConfigError: `resamples` or `permutations` is below 1.
    """
    a, b = _pair(a, b)
    value = find_measure(metric).value
    rows_a, rows_b = (_needed_rows(_as_people(predictions, people), metric, labels) for predictions in (a, b))
    person = _person_index(a, people)
    sums_a, sums_b = _sums_of(rows_a, person), _sums_of(rows_b, person)
    observed = float(value(sums_a.sum(axis=0)) - value(sums_b.sum(axis=0)))
    interval = None
    if len(sums_a) > 1:
        drawn = _resampled_sums(np.concatenate([sums_a, sums_b], axis=1), resamples=resamples, seed=seed)
        half_a, half_b = np.split(drawn, 2, axis=1)
        interval = _percentile_interval(np.asarray(value(half_a) - value(half_b)))
    p_value = _swap_p_value(sums_a, sums_b, value, permutations=permutations, seed=seed)
    return Difference(metric, observed, interval, p_value, len(sums_a), count_queries(a))


def _needed_rows(predictions: Sequence[Prediction], metric: str, labels: Sequence[str]) -> Array:
    rows = _rows(predictions, [metric], labels).get(metric)
    if rows is None:
        raise DataError(
            f"cannot compare by {metric}: at least one prediction has none (a method without a model, or a value "
            "that is not finite); compare by another metric"
        )
    return rows


def _pair(a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Put both in one order, the one answer beside each of several."""
    require_same_queries(a, b, names=("a", "b"))
    answers_a, answers_b = _by_query(a), _by_query(b)
    paired_a, paired_b = [], []
    for query, rows_a in answers_a.items():
        rows_b = answers_b[query]
        count = max(len(rows_a), len(rows_b))
        paired_a += rows_a * (count // len(rows_a))
        paired_b += rows_b * (count // len(rows_b))
    return paired_a, paired_b


def _by_query(predictions: Sequence[Prediction]) -> dict[QueryKey, list[Prediction]]:
    """Gather each query's answers, one a seed, in order of appearance."""
    gathered: dict[QueryKey, list[Prediction]] = {}
    for prediction in predictions:
        gathered.setdefault((prediction.user_id, prediction.query_id), []).append(prediction)
    return gathered


def require_same_queries(a: Sequence[Prediction], b: Sequence[Prediction], *, names: tuple[str, str]) -> None:
    """Check that two methods answered the same queries with the same gold answers, in numbers that can be paired.

    Each query is answered equally often by both (once a seed); or once by a method that does not depend on a seed
    and equally often throughout by the other.

    Raises:
        DataError: they did not; the message names one query that differs.
    """
    by_a, by_b = _by_query(a), _by_query(b)
    odd = sorted(by_a.keys() ^ by_b.keys())
    if odd:
        raise DataError(
            f"{names[0]} and {names[1]} answered different queries: {len(a)} and {len(b)} answers, and query "
            f"{odd[0][1]!r} of user {odd[0][0]!r} is not in both; scores are comparable on equal queries only, "
            "so predict the missing ones or leave them out of both"
        )
    for query, rows in by_a.items():
        if len({row.gold for row in rows + by_b[query]}) > 1:
            raise DataError(
                f"{names[0]} and {names[1]} have different gold answers for query {query[1]!r} of user {query[0]!r}; "
                "they were run on different data - run both on the same files"
            )
    counts = {query: (len(rows), len(by_b[query])) for query, rows in by_a.items()}
    one_for_all = len(set(counts.values())) == 1 and 1 in next(iter(counts.values()))
    uneven = [query for query, (one, other) in counts.items() if one != other]
    if uneven and not one_for_all:
        user_id, query_id = uneven[0]
        raise DataError(
            f"{names[0]} and {names[1]} cannot be paired: they answered query {query_id!r} of user {user_id!r} "
            f"{counts[uneven[0]][0]} and {counts[uneven[0]][1]} times; wanted equally many answers (one a seed), or a "
            "single answer to every query from one of them - answer all queries with the same seeds"
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being many: the chance of any false finding stays below the level, whatever depends on what.

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70   p_(i) * (m - i + 1), never below the one before

    The smallest of m values is multiplied by m, the next by m - 1, and so on; no value falls below the one before it,
    none exceeds 1.

    Args:
        p_values: m values from 0 to 1, in any order; together they are one family of tests.

    Returns:
        Corrected values, in the same order.

    Raises:
        DataError: a value is not from 0 to 1.
    """
    for value in p_values:
        if not 0 <= value <= 1:
            raise DataError(f"cannot correct a p-value of {value}; wanted numbers from 0 to 1 - test again")
    corrected = [0.0] * len(p_values)
    floor = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = floor
    return corrected


def _swap_p_value(
    sums_a: Array, sums_b: Array, value: Callable[[Array], Array], *, permutations: int, seed: int
) -> float:
    """Share of ways to swap the two methods' answers within people that give a difference this large."""
    if permutations < 1:
        raise ConfigError(f"permutations is {permutations}; it must be 1 or more")
    count, change = len(sums_a), sums_b - sums_a
    total_a, total_b = sums_a.sum(axis=0), sums_b.sum(axis=0)
    limit = abs(float(value(total_a) - value(total_b)))
    limit -= 1e-9 * max(1.0, limit)  # sums in another order differ in the last bits; a tie counts
    as_large = tried = 0
    for swaps in _swaps(count, permutations, seed):
        moved = swaps @ change
        differences = np.abs(value(total_a + moved) - value(total_b - moved))
        as_large += int((differences >= limit).sum())
        tried += len(swaps)
    exact = tried == 2**count
    return as_large / tried if exact else (as_large + 1) / (tried + 1)


def _swaps(count: int, permutations: int, seed: int) -> Iterator[Array]:
    """Yield blocks (n, count) of 0 and 1: all of them where they are few, else random ones."""
    if 2**count <= permutations:
        yield ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(np.float64)
        return
    rng = np.random.default_rng([seed, 1])  # apart from the stream of the bootstrap
    for size in _block_sizes(permutations, count):
        yield rng.integers(0, 2, size=(size, count)).astype(np.float64)
