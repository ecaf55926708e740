"""From an example to a prompt: the one renderer of bank training, adaptation and evaluation.

It knows words, not tokens: the token limit is applied later, to the parts of the `Prompt` it returns.

Example:
    >>> render(get_task("lamp-4"), example, PromptConfig(history_k=1)).tail
    ' Headline:'
"""

from __future__ import annotations

from mta.config import PromptConfig
from mta.records import Example, Prompt
from mta.tasks.task import Task
from mta.tasks.texts import cut_words


def render(task: Task, example: Example, config: PromptConfig) -> Prompt:
    """Render an example as the prompt of its task.

    The first `history_k` items of the example's history are shown, each field cut to `history_words` words;
    the query's own text is cut to `input_words`. An example with less history shows what it has.

    Raises:
        DataError: the example lacks a field the task's instruction needs.
    """
    head, payload, tail = task.prompt_parts(example.fields)
    shown = example.history[: config.history_k]
    return Prompt(
        history=tuple(task.history_line(item, config.history_words) for item in shown),
        head=head,
        payload=cut_words(payload, config.input_words),
        tail=tail,
    )
