"""The likelihood of gold labels once over- and underconfidence are taken out: one temperature, fitted on other people.

A model trained on a few examples is often surer than it should be, and its NLL then says more about that than about
what it knows. Label scores are divided by the temperature that makes all other people's gold labels likeliest; a
person's own answers play no part in her own temperature.

Example:
    >>> calibrated_nats(predictions)
    array([1.21, 0.33, ...])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mta.metrics import Array
from mta.records import Prediction

GRID = tuple(2 ** (quarter / 4) for quarter in range(-8, 25))
"""From 1/4 to 64, four to a doubling."""


def has_scored_gold(prediction: Prediction) -> bool:
    """Tell whether the gold answer is one of the labels that were scored."""
    return prediction.gold in prediction.label_scores


def calibrated_nats(predictions: Sequence[Prediction]) -> Array:
    """Return -log of each gold label's share among the labels at the temperature that fits all other people best.

    With one person alone the temperature is 1; of equally good ones the one nearest to 1 is taken.

    Args:
        predictions: of one method, N of them, each with its gold label among the scored ones.

    Returns:
        (N,) nats.
    """
    people = {name: place for place, name in enumerate(dict.fromkeys(row.user_id for row in predictions))}
    person = np.array([people[row.user_id] for row in predictions])
    nats = np.stack([_nats(row) for row in predictions])  # (N, temperatures)
    of_person = np.zeros((len(people), nats.shape[1]))
    np.add.at(of_person, person, nats)
    of_others = of_person.sum(axis=0) - of_person  # (people, temperatures)
    return np.asarray(nats[np.arange(len(nats)), _best(of_others)[person]])


def _nats(prediction: Prediction) -> Array:
    """Return the gold label's nats at every temperature."""
    scores = np.array(list(prediction.label_scores.values()), dtype=np.float64)
    gold = list(prediction.label_scores).index(prediction.gold)
    scaled = scores[None] / np.array(GRID)[:, None]  # (temperatures, labels)
    return np.asarray(np.logaddexp.reduce(scaled, axis=1) - scaled[:, gold])


def _best(sums: Array) -> NDArray[np.int64]:
    """Return for each row the place of the temperature with the smallest sum."""
    nearest_first = np.argsort(np.abs(np.log(GRID)), kind="stable")
    return np.asarray(nearest_first[np.argmin(np.round(sums[:, nearest_first], 12), axis=1)])
