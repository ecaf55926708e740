"""LaMP-5, scholarly title: the title this author would give the paper, from its abstract.

Example:
    >>> SCHOLARLY_TITLE.parse_query("Generate a title for the following abstract of a paper: We prove it.")
    {'abstract': 'We prove it.'}
"""

from __future__ import annotations

import re
from functools import partial

from mta.tasks.examples import pairs_from_items
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task
from mta.tasks.texts import field_query, first_line, framed, joined, labelled, parse_after

NO_ABSTRACT = ("without abstract", "no abstract", "no abstract available", "abstract not available")
"""What some sources put where there is no abstract; such items give no training pair."""

_LAYOUT = (("abstract", "abstract"), ("title", "title"))

SCHOLARLY_TITLE = Task(
    task_id="lamp-5",
    slug="scholarly_title",
    lamp_name="LaMP_5",
    title="Scholarly title",
    kind="text",
    metrics=("rouge_1", "rouge_l"),
    max_new_tokens=30,
    required_fields=("abstract", "title"),
    input_field="abstract",
    output_field="title",
    parse_query=partial(
        parse_after,
        name="LaMP-5",
        marker=re.compile(r"^\s*Generate a title for the following abstract of a paper:\s*", re.IGNORECASE),
        field="abstract",
        shape="'Generate a title for the following abstract of a paper: <text>'",
    ),
    prompt_parts=partial(
        framed,
        head=f"{INSTRUCTION}Generate a title for the following abstract of a paper.\nAbstract: ",
        field="abstract",
        tail=" Title:",
    ),
    history_line=partial(labelled, layout=_LAYOUT),
    retrieval_query=partial(field_query, field="abstract"),
    retrieval_text=partial(joined, names=("abstract",)),
    item_text=partial(labelled, words=EMBED_WORDS, layout=_LAYOUT),
    document_text=partial(joined, names=("title", "abstract")),
    pairs=partial(pairs_from_items, input_field="abstract", output_field="title", placeholders=NO_ABSTRACT),
    clean=first_line,
)
