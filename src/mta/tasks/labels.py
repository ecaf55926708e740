"""Which labels people gave to their own items, and how varied these are.

Example:
    >>> given_labels(get_task("lamp-2"), user)
    ['comedy', 'comedy', 'twist ending']
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mta.errors import ConfigError
from mta.records import User
from mta.tasks.task import Task


def given_labels(task: Task, user: User) -> list[str]:
    """Return the labels a person gave to her own items, in their order; other answers are left out."""
    answers = (task.normal_answer(item.get(task.output_field)) for item in user.history)
    return [answer for answer in answers if answer in task.labels]


def label_entropies(task: Task, users: Sequence[User]) -> list[float]:
    """Return the entropy of each user's own answers, in nats.

    Raises:
        ConfigError: no history holds a label of the task.
    """
    counts = [Counter(given_labels(task, user)) for user in users]
    if not any(counts):
        raise ConfigError(
            f"min_label_entropy asks for varied answers, and no history holds a label of {task.task_id}; leave "
            "--min-label-entropy out"
        )
    return [entropy(list(count.values())) for count in counts]


def entropy(counts: Sequence[int]) -> float:
    """Return the entropy of the shares that counts make, in nats: H = - sum_l p_l log p_l; 0 of no counts."""
    total = sum(counts)
    return math.fsum(count / total * math.log(total / count) for count in counts if count)
