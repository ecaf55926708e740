"""Labels that people gave to their own items."""

from __future__ import annotations

import math

import pytest

from mta.errors import ConfigError
from mta.records import HistoryItem, User
from mta.tasks import get_task
from mta.tasks.labels import entropy, given_labels, label_entropies

LAMP_2 = get_task("lamp-2")


def fan(*tags: str) -> User:
    items = tuple(HistoryItem(str(place), {"tag": tag, "description": "a film"}) for place, tag in enumerate(tags))
    return User(user_id="fan", history=items)


def test_answers_that_are_no_labels_are_left_out() -> None:
    assert given_labels(LAMP_2, fan("comedy", "nonsense", "", "sci-fi", "comedy")) == ["comedy", "sci-fi", "comedy"]


def test_entropy_is_that_of_the_shares() -> None:
    users = [fan("comedy", "comedy"), fan("comedy", "sci-fi"), fan("comedy", "comedy", "sci-fi", "nonsense"), fan("?")]
    thirds = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert label_entropies(LAMP_2, users) == pytest.approx([0.0, math.log(2), thirds, 0.0])
    assert entropy([]) == 0
    assert entropy([7, 7, 7, 0]) == pytest.approx(math.log(3))


def test_histories_without_any_label_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no history holds a label of lamp-2.*leave --min-label-entropy out"):
        label_entropies(LAMP_2, [fan("nonsense"), fan()])
    with pytest.raises(ConfigError, match="lamp-4"):
        label_entropies(get_task("lamp-4"), [fan("comedy")])
