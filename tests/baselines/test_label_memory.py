"""The memory of items and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mta.baselines.classical_setup import Sentences
from mta.baselines.label_memory import LabelMemory, MemoryConfig, fit_memory
from mta.errors import DataError
from mta.records import Example, HistoryItem, User
from mta.tasks import get_task

TASK = get_task("lamp-3")
ONE = MemoryConfig(sharpness=(2.0,), smoothing=(0.5,), own=(3.0,))


class Angles:
    """An encoder of texts that are numbers of degrees: the point there on a circle, twice as far out."""

    name, dimensions, fingerprint = "angles", 2, "angles"

    def embed(self, texts: Sequence[str]) -> Tensor:
        angles = torch.tensor([math.radians(float(text)) for text in texts])
        return 2 * torch.stack([angles.cos(), angles.sin()], dim=1)


SENTENCES = Sentences(Angles(), None)


def person(name: str, *items: tuple[int, str]) -> User:
    history = tuple(
        HistoryItem(f"{name}-{place}", {"text": str(angle), "score": label})
        for place, (angle, label) in enumerate(items)
    )
    return User(name, history, ())


def example(name: str, angle: int) -> Example:
    return Example(example_id="query", user_id=name, fields={"text": str(angle)}, answer="1", history=())


POOL = [person("ann", (0, "1"), (90, "5")), person("bob", (10, "1"), (100, "4"), (110, "4"))]


def by_hand(weighed: Sequence[tuple[float, str]], memory: LabelMemory) -> list[float]:
    shares = dict(zip(TASK.labels, memory.shares, strict=True))
    total = 0.5 + sum(weight for weight, _ in weighed)
    found = {label: sum(w for w, one in weighed if one == label) + 0.5 * shares[label] for label in TASK.labels}
    return [math.log(found[label] / total / shares[label]) for label in TASK.labels]


def near(one: int, other: int) -> float:
    return math.exp(2.0 * (math.cos(math.radians(one - other)) - 1))


def test_the_memory_counts_items_by_nearness_and_own_ones_more() -> None:
    memory = fit_memory(TASK, POOL, SENTENCES, config=ONE)
    asked = person("new", (20, "2"))
    found = memory.log_ratio(asked, [example("new", 30)])
    pool = [(0, "1"), (90, "5"), (10, "1"), (100, "4"), (110, "4")]
    wanted = by_hand([*((near(30, angle), label) for angle, label in pool), (3 * near(30, 20), "2")], memory)
    assert found[0].tolist() == pytest.approx(wanted)


def test_a_person_of_the_pool_is_asked_without_her_items_there() -> None:
    memory = fit_memory(TASK, POOL, SENTENCES, config=ONE)
    found = memory.log_ratio(POOL[0], [example("ann", 30)])
    others = [(near(30, angle), label) for angle, label in ((10, "1"), (100, "4"), (110, "4"))]
    hers = [(3 * near(30, angle), label) for angle, label in ((0, "1"), (90, "5"))]
    assert found[0].tolist() == pytest.approx(by_hand([*others, *hers], memory))


def test_settings_are_those_with_the_least_nll_on_people_left_out() -> None:
    """By the memory's own answers: of each person without her items there, and each item without itself."""
    config = MemoryConfig(sharpness=(0.5, 8.0), smoothing=(0.1, 2.0), own=(1.0, 5.0))
    memory = fit_memory(TASK, POOL, SENTENCES, config=config)
    found = {}
    for setting in ((a, b, c) for a in config.sharpness for b in config.smoothing for c in config.own):
        tried = replace(memory, chosen=dict(zip(("sharpness", "smoothing", "own"), setting, strict=True)))
        people = []
        for user in POOL:
            nats = []
            for item in user.history:
                rest = replace(user, history=tuple(other for other in user.history if other is not item))
                (logs,) = tried.log_ratio(rest, [example(user.user_id, int(item.get("text")))])
                gold = TASK.labels.index(item.get("score"))
                nats.append(-(logs[gold] + math.log(memory.shares[gold])))
            people.append(sum(nats) / len(nats))
        found[setting] = sum(people) / len(people)
    best = min(found, key=lambda setting: found[setting])
    assert tuple(memory.chosen.values()) == best
    assert memory.nll == pytest.approx(found[best])


def test_a_pool_of_one_person_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than 2 people"):
        fit_memory(TASK, POOL[:1], SENTENCES)
