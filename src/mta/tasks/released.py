"""Answers as the authors' scripts give and read them, for whoever must reproduce them.

Other lengths, a repetition penalty for ratings, and another clean-up; questions, prompts and training are the task's
own.

Example:
    >>> released_answers(get_task("lamp-5")).clean("Learning v2.0 models")
    'Learning v2'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mta.tasks.task import Task
from mta.tasks.texts import first_line

RELEASED = "released"
"""`Task.form` of these tasks."""


def clean_rating(completion: str) -> str:
    """Round a number to the nearest whole one from 1 to 5; what is no number stays as it is."""
    text = completion.strip()
    try:
        return str(max(1, min(5, round(float(text)))))
    except (ValueError, OverflowError):
        return text


def clean_title(completion: str) -> str:
    """Return the first line up to its first full stop."""
    return first_line(completion).split(".", maxsplit=1)[0].strip()


_ANSWERS: Mapping[str, tuple[int, float, Callable[[str], str]]] = {
    "lamp-1": (5, 1.0, str.strip),
    "lamp-2": (10, 1.0, str.strip),
    "lamp-3": (3, 1.1, clean_rating),
    "lamp-4": (50, 1.0, first_line),
    "lamp-5": (30, 1.0, clean_title),
}
"""task id -> most new tokens, repetition penalty, clean-up."""


def released_answers(task: Task) -> Task:
    """Return the task with the answers of the authors' scripts; a task they do not have stays as it is."""
    if task.task_id not in _ANSWERS:
        return task
    tokens, penalty, clean = _ANSWERS[task.task_id]
    return replace(task, form=RELEASED, max_new_tokens=tokens, repetition_penalty=penalty, clean=clean)
