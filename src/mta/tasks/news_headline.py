"""LaMP-4, news headline: the headline this author would set over the article.

Example:
    >>> NEWS_HEADLINE.parse_query("Generate a headline for the following article: It rained.")
    {'text': 'It rained.'}
"""

from __future__ import annotations

import re
from functools import partial

from mta.tasks.examples import pairs_from_items
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task
from mta.tasks.texts import field_query, first_line, framed, joined, labelled, parse_after

_LAYOUT = (("Article", "text"), ("Headline", "title"))

NEWS_HEADLINE = Task(
    task_id="lamp-4",
    slug="news_headline",
    lamp_name="LaMP_4",
    title="News headline",
    kind="text",
    metrics=("rouge_1", "rouge_l"),
    max_new_tokens=50,
    required_fields=("text", "title"),
    input_field="text",
    output_field="title",
    parse_query=partial(
        parse_after,
        name="LaMP-4",
        marker=re.compile(r"^\s*Generate a headline for the following article:\s*", re.IGNORECASE),
        field="text",
        shape="'Generate a headline for the following article: <text>'",
    ),
    prompt_parts=partial(
        framed,
        head=f"{INSTRUCTION}Generate a headline for the following article.\nArticle: ",
        field="text",
        tail=" Headline:",
    ),
    history_line=partial(labelled, layout=_LAYOUT),
    retrieval_query=partial(field_query, field="text"),
    retrieval_text=partial(joined, names=("title", "text")),
    item_text=partial(labelled, words=EMBED_WORDS, layout=_LAYOUT),
    document_text=partial(joined, names=("title", "text")),
    pairs=partial(pairs_from_items, input_field="text", output_field="title"),
    clean=first_line,
)
