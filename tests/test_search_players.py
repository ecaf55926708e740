"""Who plays target in the search over variants: nobody is asked what anybody has learned, no real target is read."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mta.data.personas import make_personas
from mta.data.splits import find_leaks
from mta.tasks import get_task
from mta.tasks.examples import query_examples

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-3", "lamp-4", "lamp-5"])
def test_players_are_asked_what_nobody_has_learned(task_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search

    task = get_task(task_id)
    kept = search.HISTORY[task_id]
    users = make_personas(task_id, people=12, history=(kept - 2, kept + 6), queries=1, seed=0).users
    pool, players = search.make_players(users, task, count=4)
    assert len(players) == 4
    assert {user.user_id for user in pool} | {user.user_id for user in players} == {user.user_id for user in users}
    assert not find_leaks(pool, players).same_people
    whole = {user.user_id: user for user in users}
    for player in players:
        assert player.history == whole[player.user_id].history[-kept:]
        assert 1 <= len(player.queries) <= search.QUESTIONS
        shown = {item.item_id for item in player.history}
        earlier = {item.item_id: item for item in whole[player.user_id].history if item.item_id not in shown}
        for example in query_examples(task, player, history_k=0)[1:]:
            item = earlier[example.example_id.split(" ", 1)[1]]
            assert example.answer == task.normal_answer(item.get(task.output_field))
            assert next(iter(example.fields.values())) in item.fields.values(), "asked in the words of a real question"


def test_every_trial_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of settings are right, and methods that mean nothing for a task are left out."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search

    for task_id in search.HISTORY:
        options = argparse.Namespace(task=task_id, base="smollm2-135m", dtype="bfloat16", max_items=20)
        made = {name: search.config_of(trial, options) for name, trial in search.TRIALS.items()}
        assert all(config.methods for config in made.values())
        assert ("classical" in made["small"].methods) == (task_id in ("lamp-1", "lamp-2", "lamp-3"))
