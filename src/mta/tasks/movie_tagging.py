"""LaMP-2, movie tagging: choose which of 15 tags this user would give the film.

The data is the "new" LaMP-2; the older task of that name (news categories) has other fields and is refused.

Example:
    >>> clean_tag(" Dark Comedy.")
    'dark comedy'
"""

from __future__ import annotations

import re
from functools import partial

from mta.tasks.examples import pairs_from_items
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task
from mta.tasks.texts import field_query, first_line, framed, joined, labelled, parse_after

TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)

_ANY_TAG = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, TAGS), key=len, reverse=True))})(?!\w)")
_LAYOUT = (("Description", "description"), ("Tag", "tag"))


def clean_tag(completion: str) -> str:
    """Read the tag out of a completion.

    The first line counts, in lower case: the first tag in it as whole words ("dark comedy" before "comedy").
    A line without a tag is returned as it is and scores as wrong.
    """
    line = first_line(completion)
    found = _ANY_TAG.search(line.lower())
    return found.group() if found else line


def normal_tag(answer: str) -> str:
    """Return a gold tag in the spelling of `TAGS` where it differs only in case."""
    tag = answer.strip()
    return tag.lower() if tag.lower() in TAGS else tag


MOVIE_TAGGING = Task(
    task_id="lamp-2",
    slug="movie_tagging",
    lamp_name="LaMP_2",
    title="Movie tagging",
    kind="label",
    labels=TAGS,
    metrics=("accuracy", "macro_f1"),
    max_new_tokens=10,
    required_fields=("description", "tag"),
    input_field="description",
    output_field="tag",
    parse_query=partial(
        parse_after,
        name="LaMP-2",
        marker=re.compile(r"\]\s*description:\s*", re.IGNORECASE),
        field="description",
        shape="'Which tag does this movie relate to ... tags: [...] description: <text>'",
    ),
    prompt_parts=partial(
        framed,
        head=(
            f"{INSTRUCTION}Which tag does this movie relate to among the following tags? Just answer with the tag "
            f"name without further explanation. tags: [{', '.join(TAGS)}]\nDescription: "
        ),
        field="description",
        tail=" Tag:",
    ),
    history_line=partial(labelled, layout=_LAYOUT),
    retrieval_query=partial(field_query, field="description"),
    retrieval_text=partial(joined, names=("description", "tag")),
    item_text=partial(labelled, words=EMBED_WORDS, layout=_LAYOUT),
    document_text=partial(joined, names=("tag", "description")),
    pairs=partial(
        pairs_from_items, input_field="description", output_field="tag", labels=TAGS, normal_answer=normal_tag
    ),
    normal_answer=normal_tag,
    clean=clean_tag,
)
