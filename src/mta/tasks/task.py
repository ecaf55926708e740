"""What a task is: one frozen value whose fields say how its data reads, prompts and answers.

A new task is one file with one `Task` and one line in `mta.tasks.TASKS`. All functions in the fields are
module functions (or partials of them), so that a task can be sent to another process.

Example:
    >>> get_task("lamp-2").parse_query("... tags: [sci-fi, comedy] description: A robot learns to joke.")
    {'description': 'A robot learns to joke.'}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mta.records import HistoryItem, User

INSTRUCTION = "### User Instruction:\n"
"""First line of every prompt, below the history."""

EMBED_WORDS = 368
"""Words kept of each field when an item is embedded for the user vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """What is asked and answered when one history item is used for training."""

    fields: Mapping[str, str]
    """The same names that the task's `parse_query` gives."""
    answer: str
    item_id: str
    """The item the pair was made from; it is never shown beside the pair."""
    hidden_ids: frozenset[str] = frozenset()
    """Further items that would give the answer away and must not be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPairs:
    """All pairs of one history, how they were made, and what was left out."""

    pairs: tuple[TrainingPair, ...]
    source: str
    """How the pairs were made, in words for the run's record: "history items", "citation items", ..."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why items gave no pair -> how many."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of question that can be asked of every user."""

    task_id: str
    """Short name, for example "lamp-2"."""
    slug: str
    """Name in words, for example "movie_tagging"."""
    lamp_name: str
    """Name in LaMP's answer files, for example "LaMP_2"."""
    title: str
    """Name for tables and reports."""
    kind: str
    """"label" (one of `labels`), "rating" (`labels` are numbers) or "text" (free text)."""
    labels: tuple[str, ...] = ()
    """All possible answers; () for free text."""
    metrics: tuple[str, ...]
    """Names of the task's metrics, the main one first."""
    form: str = ""
    """Another way to give and read answers than the usual one, for example "released" (see `tasks.released`)."""
    max_new_tokens: int
    """Most tokens generated for an answer."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that were seen already; 1 leaves greedy answers as they are."""
    required_fields: tuple[str, ...]
    """Fields that each history item must have (they may be blank)."""
    input_field: str
    """Field of a history item that is asked about."""
    output_field: str
    """Field of a history item that answers."""
    parse_query: Callable[[str], Mapping[str, str]]
    """Raw input text -> fields of the instruction; a DataError says which part is missing."""
    prompt_parts: Callable[[Mapping[str, str]], tuple[str, str, str]]
    """Fields -> (head, payload, tail); only the end of the payload may be cut."""
    history_line: Callable[[HistoryItem, int], str]
    """Item, words kept of each field -> the item as it is shown in a prompt."""
    retrieval_query: Callable[[Mapping[str, str]], str]
    """Fields -> the text BM25 searches with: the query's own text, without the instruction, whose words would
    match the wrong things."""
    retrieval_text: Callable[[HistoryItem], str]
    """Item -> the text BM25 searches in."""
    item_text: Callable[[HistoryItem], str]
    """Item -> the text embedded for the user vector (MTA Eq. 2), 368 words a field."""
    document_text: Callable[[HistoryItem], str]
    """Item -> its part of the user's matching document."""
    pairs: Callable[[User, int], TrainingPairs]
    """User, seed -> training pairs, usually one an item."""
    proxy_pairs: Callable[[User, int], TrainingPairs] | None = None
    """Pairs of a related question for users whose history gives none of the task's own; used only on request."""
    normal_answer: Callable[[str], str] = str.strip
    """Gold answer as found in a file -> as the task writes it (and as `labels` lists it)."""
    clean: Callable[[str], str]
    """Completion -> answer. One policy for every method; what it cannot read it leaves as it is, to be scored."""
