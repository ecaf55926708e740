"""The temperature of free text: what the scores of all next tokens are divided by. It changes no greedy answer.

Example:
    >>> at_temperature(prediction, choose_temperature(answers_of_pool_users)).nll
    31.4
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mta.errors import DataError
from mta.records import Prediction


def choose_temperature(predictions: Sequence[Prediction]) -> float:
    """Return the temperature at which the gold texts are likeliest; of equal ones the one nearest to 1.

    Args:
        predictions: answers to queries of pool users, never of targets; those without a gold text are passed over.

    Raises:
        DataError: there is nothing to choose on.
    """
    known = [row for row in predictions if row.nll_at]
    if not known:
        raise DataError(
            f"cannot choose a temperature: of none of {len(predictions)} predictions is it known how likely the gold "
            "text is at others; give predictions of a text task for pool users whose answers are known"
        )
    costs = {key: math.fsum(row.nll_at[key] for row in known) for key in known[0].nll_at}
    return float(min(costs, key=lambda key: (costs[key], abs(math.log(float(key))))))


def at_temperature(prediction: Prediction, temperature: float) -> Prediction:
    """Return an answer with the likelihood at a temperature, one of those at which it was scored; those stay."""
    if not prediction.nll_at:
        return prediction
    found = {float(key): nats for key, nats in prediction.nll_at.items()}
    return replace(prediction, nll=found[temperature])
