"""LaMP-3, product rating: say how many stars, 1 to 5, this user gave with the review.

Example:
    >>> clean_rating(" 4 out of 5")
    '4'
"""

from __future__ import annotations

import re
from functools import partial

from mta.tasks.examples import pairs_from_items
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task
from mta.tasks.texts import field_query, first_line, framed, joined, labelled, parse_after

RATINGS = ("1", "2", "3", "4", "5")

_LEADING_RATING = re.compile(r"(?:[1-4](?:\.\d+)?|5(?:\.0+)?)(?!\w|[.,]\d)")
_WHOLE = re.compile(r"([1-5])\.0+")
_LAYOUT = (("Review", "text"), ("Score", "score"))


def clean_rating(completion: str) -> str:
    """Read the rating out of a completion.

    A number from 1 to 5 that opens the first line is the rating ("4", "4.", "4/5", "4.5 stars"). Any other
    first line is returned as it is; the metrics decide what an unreadable rating costs.
    """
    line = first_line(completion)
    found = _LEADING_RATING.match(line)
    return found.group() if found else line


def normal_rating(answer: str) -> str:
    """Return a gold rating without a decimal part of zeros: "4.0" is "4"."""
    whole = _WHOLE.fullmatch(answer.strip())
    return whole.group(1) if whole else answer.strip()


PRODUCT_RATING = Task(
    task_id="lamp-3",
    slug="product_rating",
    lamp_name="LaMP_3",
    title="Product rating",
    kind="rating",
    labels=RATINGS,
    metrics=("mae", "rmse"),
    max_new_tokens=5,
    required_fields=("text", "score"),
    input_field="text",
    output_field="score",
    parse_query=partial(
        parse_after,
        name="LaMP-3",
        marker=re.compile(r"without further explanation\.\s*review:\s*", re.IGNORECASE),
        field="text",
        shape="'What is the score of the following review ... without further explanation. review: <text>'",
    ),
    prompt_parts=partial(
        framed,
        head=(
            f"{INSTRUCTION}What is the score of the following review on a scale of 1 to 5? just answer with "
            "1, 2, 3, 4, or 5 without further explanation.\nReview: "
        ),
        field="text",
        tail=" Score:",
    ),
    history_line=partial(labelled, layout=_LAYOUT),
    retrieval_query=partial(field_query, field="text"),
    retrieval_text=partial(joined, names=("text",)),
    item_text=partial(labelled, words=EMBED_WORDS, layout=_LAYOUT),
    document_text=partial(joined, names=("text",)),
    pairs=partial(
        pairs_from_items, input_field="text", output_field="score", labels=RATINGS, normal_answer=normal_rating
    ),
    normal_answer=normal_rating,
    clean=clean_rating,
)
