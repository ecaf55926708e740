"""Counts, orders and learning rates of one user's training, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import TrainConfig
from mta.training_plan import TrainJob, learning_rate, total_updates, update_examples, updates_per_epoch

PLAIN = TrainConfig()


@pytest.mark.parametrize(
    ("examples", "changes", "per_epoch", "total"),
    [
        (10, {"batch_size": 8, "epochs": 3}, 2, 6),
        (10, {"batch_size": 8, "epochs": 3, "drop_last": True}, 1, 3),
        (7, {"batch_size": 8, "epochs": 3, "drop_last": True}, 1, 3),
        (1, {"batch_size": 2, "epochs": 2}, 1, 2),
        (16, {"batch_size": 8, "epochs": 1}, 2, 2),
        (10, {"batch_size": 4, "epochs": 1, "min_updates": 7}, 3, 9),
        (10, {"batch_size": 4, "epochs": 5, "min_updates": 7}, 3, 15),
        (10, {"batch_size": 4, "epochs": 5, "max_updates": 4}, 3, 4),
        (10, {"batch_size": 4, "epochs": 1, "min_updates": 7, "max_updates": 8}, 3, 8),
        (10, {"batch_size": 4, "epochs": 1, "max_updates": 50}, 3, 3),
    ],
)
def test_number_of_updates(examples: int, changes: dict, per_epoch: int, total: int) -> None:
    config = replace(PLAIN, **changes)
    assert updates_per_epoch(examples, config) == per_epoch
    assert total_updates(examples, config) == total


def test_total_of_a_job_counts_training_rows_only() -> None:
    from helpers import random_rows

    job = TrainJob("ann", random_rows(1, 5), replace(PLAIN, batch_size=2, epochs=2), held_out=random_rows(2, 9))
    assert job.total == 6


@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 3), st.text(max_size=5))
def test_an_epoch_shows_every_example_once(
    examples: int, batch_size: int, drop_last: bool, epoch: int, job_id: str
) -> None:
    config = replace(PLAIN, batch_size=batch_size, drop_last=drop_last)
    count = updates_per_epoch(examples, config)
    updates = [update_examples(examples, config, job_id=job_id, step=epoch * count + k) for k in range(count)]
    shown = [index for update in updates for index in update]
    assert len(set(shown)) == len(shown)
    if drop_last and examples >= batch_size:
        assert [len(update) for update in updates] == [batch_size] * (examples // batch_size)
    else:
        assert sorted(shown) == list(range(examples))
        assert all(len(update) == batch_size for update in updates[:-1])
        assert 1 <= len(updates[-1]) <= batch_size


def test_order_depends_on_seed_user_and_epoch_and_on_nothing_else() -> None:
    def order(job_id: str = "ann", *, seed: int = 42, epoch: int = 0, **changes: object) -> tuple[int, ...]:
        config = replace(PLAIN, seed=seed, batch_size=30, **changes)
        return tuple(update_examples(30, config, job_id=job_id, step=epoch))

    assert len({order(), order("bob"), order(seed=1), order(epoch=1), order("bob", epoch=1)}) == 5
    assert order() == order(lr=1.0) == order(epochs=9) == order(rank=1)


def test_cosine_with_warm_up_by_hand() -> None:
    """Ten updates, two of warm-up: a third, two thirds, then half a cosine over eight."""
    config = replace(PLAIN, lr=1.0, warmup_ratio=0.2, schedule="cosine")
    rates = [learning_rate(config, step=step, total=10) for step in range(10)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(8)])
    assert rates[6] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "wanted"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0, 1.0, 1.0, 1.0])]
)
def test_other_schedules_without_warm_up(schedule: str, wanted: list[float]) -> None:
    config = replace(PLAIN, lr=1.0, warmup_ratio=0.0, schedule=schedule)
    assert [learning_rate(config, step=step, total=4) for step in range(4)] == pytest.approx(wanted)


@given(
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 0.99),
    st.integers(1, 60),
)
def test_rates_rise_then_fall_and_no_update_is_wasted(schedule: str, warmup_ratio: float, total: int) -> None:
    config = replace(PLAIN, lr=2e-4, warmup_ratio=warmup_ratio, schedule=schedule)
    rates = [learning_rate(config, step=step, total=total) for step in range(total)]
    assert all(0 < rate <= 2e-4 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= math.ceil(total * warmup_ratio)
