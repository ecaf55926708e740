"""The tasks by name: LaMP-1 to LaMP-5 and a user's own data.

Example:
    >>> get_task("movie_tagging") is TASKS["lamp-2"]
    True
"""

from __future__ import annotations

from mta.errors import unknown_name
from mta.tasks.citation import CITATION
from mta.tasks.movie_tagging import MOVIE_TAGGING
from mta.tasks.news_headline import NEWS_HEADLINE
from mta.tasks.own import OWN, OWN_BY_ID
from mta.tasks.product_rating import PRODUCT_RATING
from mta.tasks.scholarly_title import SCHOLARLY_TITLE
from mta.tasks.task import Task

_LAMP = (CITATION, MOVIE_TAGGING, PRODUCT_RATING, NEWS_HEADLINE, SCHOLARLY_TITLE)
TASKS: dict[str, Task] = {task.task_id: task for task in (*_LAMP, OWN, OWN_BY_ID)}


def get_task(name: str) -> Task:
    """Find a task by its id, its slug or its LaMP name; case and "_" against "-" do not matter.

    Raises:
        NotFound: no task has that name; the message lists the ids.
    """
    wanted = _folded(name)
    for task in TASKS.values():
        if wanted in map(_folded, (task.task_id, task.slug, task.lamp_name)):
            return task
    raise unknown_name("task", name, TASKS)


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")
