"""The likelihood of gold answers once over- and underconfidence are taken out: one temperature, fitted on other people.

A model trained on a few examples is often surer than it should be, and its NLL then says more about that than about
what it knows. Label scores, or of free text the scores of all next tokens, are divided by the temperature that makes
all other people's gold answers likeliest; a person's own answers play no part in her own temperature.

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

LABEL_GRID = tuple(2 ** (quarter / 4) for quarter in range(-8, 25))
"""From 1/4 to 64, four to a doubling."""


def can_be_calibrated(prediction: Prediction) -> bool:
    """Tell whether it is known how likely the gold answer is at other temperatures."""
    return prediction.gold in prediction.label_scores or bool(prediction.nll_at)


def calibrated_nats(predictions: Sequence[Prediction]) -> Array:
    """Return what each gold answer costs at the temperature that fits all other people best.

    With one person alone the temperature is 1; of equally good ones the one nearest to 1 is taken.

    Args:
        predictions: of one method and task, N of them that can be calibrated.

    Returns:
        (N,) nats: of a label among all labels, of a text over all its tokens.
    """
    grid = LABEL_GRID if predictions[0].label_scores else tuple(map(float, predictions[0].nll_at))
    people = {name: place for place, name in enumerate(dict.fromkeys(row.user_id for row in predictions))}
    person = np.array([people[row.user_id] for row in predictions])
    nats = np.stack([_nats(row) for row in predictions])  # (N, temperatures)
    of_person = np.zeros((len(people), nats.shape[1]))
    np.add.at(of_person, person, nats)
    of_others = of_person.sum(axis=0) - of_person  # (people, temperatures)
    return np.asarray(nats[np.arange(len(nats)), _best(of_others, grid)[person]])


def _nats(prediction: Prediction) -> Array:
    """Return the gold answer's nats at every temperature."""
    if not prediction.label_scores:
        return np.array(list(prediction.nll_at.values()), dtype=np.float64)
    scores = np.array(list(prediction.label_scores.values()), dtype=np.float64)
    gold = list(prediction.label_scores).index(prediction.gold)
    scaled = scores[None] / np.array(LABEL_GRID)[:, None]  # (temperatures, labels)
    return np.asarray(np.logaddexp.reduce(scaled, axis=1) - scaled[:, gold])


def _best(sums: Array, grid: Sequence[float]) -> NDArray[np.int64]:
    """Return for each row the place of the temperature with the smallest sum."""
    nearest_first = np.argsort(np.abs(np.log(grid)), kind="stable")
    return np.asarray(nearest_first[np.argmin(np.round(sums[:, nearest_first], 12), axis=1)])
