"""The values that flow through the pipeline: people, their items, prompts and answers.

All are frozen. Nothing here knows a task, a file format or a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One past record of a person (LaMP calls it a profile item)."""

    item_id: str
    """Unique within the person's history."""
    fields: Mapping[str, str]
    """Named texts, for example {"description": ..., "tag": ...}; values are always strings."""
    time: str | None = None
    """When it happened, as found in the file (sortable text), or None where the source has no order."""

    def get(self, name: str) -> str:
        """Return the field `name`, or "" where the item has none."""
        return self.fields.get(name, "")


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a person, as the data file has it."""

    query_id: str
    text: str
    """The raw input text, with the data set's own wording."""
    gold: str | None = None
    """The person's true answer, or None where the file has none."""


@dataclass(frozen=True, slots=True)
class User:
    """One person: a history to learn from and the queries to answer."""

    user_id: str
    history: tuple[HistoryItem, ...]
    queries: tuple[Query, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to answer, with its gold answer and the history that may be shown beside it.

    Training examples come from history items (leave-one-out), evaluation examples from queries.
    """

    example_id: str
    user_id: str
    fields: Mapping[str, str]
    """What the task's instruction needs, for example {"description": ...}."""
    answer: str
    """The gold answer; "" where it is unknown."""
    history: tuple[HistoryItem, ...] = ()
    """Retrieved items, most relevant first; never the item the example was made from."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt, kept in the parts that may and may not be cut.

    The text is `history_header + history items + head + payload + tail`. When it is too long, history
    goes first (last item first), then the end of `payload`; `head`, `tail` and the answer are never cut.
    """

    history: tuple[str, ...]
    """Rendered history items, most relevant first."""
    head: str
    """Instruction before the payload."""
    payload: str
    """The query's own text, for example the movie description."""
    tail: str
    """What follows the payload and asks for the answer, for example " Tag:"."""
    history_header: str = "### User History:\n"

    @property
    def text(self) -> str:
        """The whole prompt as one text."""
        shown = ""
        if self.history:
            shown = self.history_header + "\n".join(self.history) + "\n\n"
        return f"{shown}{self.head}{self.payload}{self.tail}"

    @property
    def messages(self) -> list[Message]:
        """The prompt as a chat of one user turn."""
        return [Message("user", self.text)]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one method answered to one query, with what is needed to score it."""

    query_id: str
    user_id: str
    gold: str
    text: str
    """The answer: the generated text after the task's clean-up."""
    label: str | None = None
    """Highest-scoring label where the task has labels and a model scored them, else None."""
    nll: float | None = None
    """Negative log-likelihood of the gold answer in nats: of the label among all labels, or summed over
    the answer's tokens for free text. None for methods without a model."""
    nll_tokens: int = 1
    """How many answer tokens `nll` sums over (1 for label tasks)."""
    label_scores: Mapping[str, float] = field(default_factory=dict)
    """Label -> log-probability of the label's tokens given the prompt (label tasks only)."""
    nll_at: Mapping[str, float] = field(default_factory=dict)
    """Temperature -> what `nll` is where the scores of all next tokens are divided by it (free text only)."""
