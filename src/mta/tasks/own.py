"""Any task a user brings: an input text, an output text. Two forms, which differ in what tells people apart.

The input is shown as it is, so it can carry its own instruction; the frame around it only separates it from
the history and asks for the output, in the words the history items use.

Example:
    >>> OWN.prompt_parts({"input": "Reply to: are you free on Monday?"})
    ('### User Instruction:\\n', 'Reply to: are you free on Monday?', '\\nOutput:')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from mta.errors import DataError
from mta.tasks.examples import pairs_from_items
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task
from mta.tasks.texts import field_query, framed, joined, labelled

_LAYOUT = (("Input", "input"), ("Output", "output"))


def parse_own(raw: str) -> Mapping[str, str]:
    """Return the input text, without outer space, as the one field of the task.

    Raises:
        DataError: the text is blank.
    """
    if not raw.strip():
        raise DataError("the input is blank; give it a text, or remove the record")
    return {"input": raw.strip()}


def clean_own(completion: str) -> str:
    """Return the whole completion, also over several lines, up to where it starts a new "###" frame."""
    return f"\n{completion}".split("\n###", maxsplit=1)[0].strip()


OWN = Task(
    task_id="own",
    slug="own",
    lamp_name="own",
    title="Own data",
    kind="text",
    metrics=("rouge_1", "rouge_l"),
    max_new_tokens=64,
    required_fields=("input", "output"),
    input_field="input",
    output_field="output",
    parse_query=parse_own,
    prompt_parts=partial(framed, head=INSTRUCTION, field="input", tail="\nOutput:"),
    history_line=partial(labelled, layout=_LAYOUT),
    retrieval_query=partial(field_query, field="input"),
    retrieval_text=partial(joined, names=("input", "output")),
    item_text=partial(labelled, words=EMBED_WORDS, layout=_LAYOUT),
    document_text=partial(joined, names=("input", "output")),
    pairs=partial(pairs_from_items, input_field="input", output_field="output"),
    clean=clean_own,
)
OWN_BY_ID = replace(OWN, task_id="own-by-id", slug="own-by-id", lamp_name="own-by-id", title="Own data, people by id")
"""The same where user ids are known to be people, for example of a product with accounts: histories are not compared,
so that many people may write the same things (see `data.people`)."""
