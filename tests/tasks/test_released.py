"""Answers as the authors' scripts give and read them: every difference from the usual ones by hand."""

from __future__ import annotations

import pickle

import pytest

from mta.tasks import TASKS, get_task
from mta.tasks.released import released_answers

LENGTHS = {"lamp-1": 5, "lamp-2": 10, "lamp-3": 3, "lamp-4": 50, "lamp-5": 30}


@pytest.mark.parametrize(
    ("task_id", "completion", "wanted"),
    [
        ("lamp-1", " [1] because", "[1] because"),
        ("lamp-2", " Dark Comedy\n", "Dark Comedy"),
        ("lamp-3", " 4.6\n", "5"),
        ("lamp-3", "9", "5"),
        ("lamp-3", "-2", "1"),
        ("lamp-3", "4 stars", "4 stars"),
        ("lamp-3", "inf", "inf"),
        ("lamp-4", "\n Rain. Again \nmore", "Rain. Again"),
        ("lamp-5", "Learning v2.0 models\nmore", "Learning v2"),
    ],
)
def test_completions_are_read_as_the_scripts_read_them(task_id: str, completion: str, wanted: str) -> None:
    assert released_answers(get_task(task_id)).clean(completion) == wanted


def test_lengths_and_the_penalty_of_ratings() -> None:
    for task_id, tokens in LENGTHS.items():
        task = released_answers(get_task(task_id))
        assert (task.form, task.max_new_tokens) == ("released", tokens)
        assert task.repetition_penalty == (1.1 if task_id == "lamp-3" else 1.0)
        assert pickle.loads(pickle.dumps(task)).clean is task.clean
    assert released_answers(get_task("own")) is get_task("own")
    assert {task.repetition_penalty for task in TASKS.values()} == {1.0}
