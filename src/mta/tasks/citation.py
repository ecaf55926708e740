"""LaMP-1, citation identification: choose which of two papers this author would cite.

LaMP's own files hold titles and abstracts; only processed files name, per item, a paper it cites (`citation`).
Training pairs need that field:

- the right option is the item's citation, the wrong one the citation of the closest other title whose
  citation differs; a coin decides the order, the same for the same seed, user and item;
- items that cite either option are not shown beside the pair. The closest title is what BM25 would show, and
  it would teach that the option seen in the history is the wrong one.

A user without such items gives no pairs, or, on request, the related question "write the abstract to a title".

Example:
    >>> clean_choice(" [2]\\n")
    '[2]'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from mta.errors import DataError
from mta.records import HistoryItem, User
from mta.retrieval import TextIndex
from mta.seeds import stable_seed
from mta.tasks.examples import pairs_from_items
from mta.tasks.scholarly_title import NO_ABSTRACT
from mta.tasks.task import EMBED_WORDS, INSTRUCTION, Task, TrainingPair, TrainingPairs
from mta.tasks.texts import field_query, first_line, framed, joined, labelled, need, opening

CHOICES = ("[1]", "[2]")
HEAD = f'{INSTRUCTION}For an author who has written the paper with the title "'
PROXY_HEAD = f"{INSTRUCTION}Write an abstract for this title.\nTitle: "

_BEFORE_TITLE = re.compile(r'written\s+the\s+paper\s+with\s+the\s+title\s*"', re.IGNORECASE)
_AFTER_TITLE = re.compile(r'"\s*,?\s*which\s+reference\s+is\s+related\s*\?', re.IGNORECASE)
_BEFORE_FIRST = re.compile(r'\[1\]\s*:\s*"')
_BEFORE_SECOND = re.compile(r'"\s*,?\s*\[2\]\s*:\s*"')
_AT_END = re.compile(r'"\s*$')
_CHOICE = re.compile(r"\[\s*([12])\s*\]")
_LEADING_NUMBER = re.compile(r"\[?([12])(?![\w.,]*\d)(?!\w)")


def parse_citation(raw: str) -> Mapping[str, str]:
    """Return the title and the two options of a raw input.

    The fixed phrases around the three slots are the landmarks, so the titles themselves may hold quotes.

    Raises:
        DataError: a landmark is missing; the message says what could not be found.
    """
    title, rest = _between(raw, _BEFORE_TITLE, _AFTER_TITLE, raw=raw, what="paper's title")
    first, rest = _between(rest, _BEFORE_FIRST, _BEFORE_SECOND, raw=raw, what="two options")
    end = _AT_END.search(rest)
    if end is None:
        raise _unreadable(raw, "closing quote of option [2]")
    return {"title": title, "option_1": first, "option_2": rest[: end.start()].strip()}


def _between(text: str, before: re.Pattern[str], after: re.Pattern[str], *, raw: str, what: str) -> tuple[str, str]:
    """Return the slot between two landmarks and the text behind them."""
    start = before.search(text)
    end = after.search(text, start.end()) if start else None
    if start is None or end is None:
        raise _unreadable(raw, what)
    return text[start.end() : end.start()].strip(), text[end.end() :]


def _unreadable(raw: str, what: str) -> DataError:
    return DataError(
        f"LaMP-1 input lacks the {what}: it reads {opening(raw)}, and should read 'For an author who has written "
        'the paper with the title "<T>", which reference is related? ... [1]: "<O1>" [2]: "<O2>"\'; '
        "correct or remove this record"
    )


def citation_prompt(fields: Mapping[str, str]) -> tuple[str, str, str]:
    """Ask for one of two options; fields without options (proxy pairs) ask for the abstract to the title."""
    if "option_1" not in fields and "option_2" not in fields:
        return framed(fields, head=PROXY_HEAD, field="title", tail=" Abstract:")
    tail = (
        '", which reference is related? Just answer with [1] or [2] without explanation.\n'
        f"Reference: [1] - {need(fields, 'option_1')} [2] - {need(fields, 'option_2')}\nAnswer:"
    )
    return HEAD, need(fields, "title"), tail


def clean_choice(completion: str) -> str:
    """Read the choice out of a completion.

    The first "[1]" or "[2]" of the first line counts, or else a 1 or 2 that opens it; any other line is
    returned as it is and scores as wrong.
    """
    line = first_line(completion)
    found = _CHOICE.search(line) or _LEADING_NUMBER.match(line)
    return f"[{found.group(1)}]" if found else line


def citation_pairs(user: User, seed: int) -> TrainingPairs:
    """Make a pair of each item that names a citation and has another item to take the wrong option from."""
    citing = [item for item in user.history if item.get("citation").strip() and item.get("title").strip()]
    reasons = Counter({"no citation": len(user.history) - len(citing)})
    index = TextIndex([item.get("title") for item in citing])
    pairs = []
    for place, item in enumerate(citing):
        wrong = _distractor(citing, place, index)
        if wrong is None:
            reasons["no other item with a different citation"] += 1
        else:
            pairs.append(_pair(user, item, wrong, seed=seed))
    return TrainingPairs(pairs=tuple(pairs), source="citation items", reasons=dict(+reasons))


def _distractor(citing: Sequence[HistoryItem], place: int, index: TextIndex) -> str | None:
    """Return the citation of the closest other title that cites something else."""
    ranked = index.rank(citing[place].get("title"), top_k=len(citing), exclude={place})
    others = (citing[other].get("citation").strip() for other in ranked)
    return next((other for other in others if _key(other) != _key(citing[place].get("citation"))), None)


def _pair(user: User, item: HistoryItem, wrong: str, *, seed: int) -> TrainingPair:
    right = item.get("citation").strip()
    right_first = stable_seed(seed, "option order", user.user_id, item.item_id) % 2 == 0
    options = (right, wrong) if right_first else (wrong, right)
    given_away = {_key(right), _key(wrong)}
    return TrainingPair(
        fields={"title": item.get("title").strip(), "option_1": options[0], "option_2": options[1]},
        answer=CHOICES[options.index(right)],
        item_id=item.item_id,
        hidden_ids=frozenset(
            other.item_id for other in user.history if other is not item and _key(other.get("citation")) in given_away
        ),
    )


def _key(title: str) -> str:
    """A title for comparison: case and spacing do not count."""
    return " ".join(title.casefold().split())


def title_to_abstract(user: User, seed: int) -> TrainingPairs:
    """Make a pair of each item with an abstract: the title asks, the abstract answers."""
    made = pairs_from_items(user, seed, input_field="title", output_field="abstract", placeholders=NO_ABSTRACT)
    return TrainingPairs(pairs=made.pairs, source="title to abstract", reasons=made.reasons)


CITATION = Task(
    task_id="lamp-1",
    slug="citation",
    lamp_name="LaMP_1",
    title="Citation identification",
    kind="label",
    labels=CHOICES,
    metrics=("accuracy", "macro_f1"),
    max_new_tokens=10,
    required_fields=("title",),
    input_field="title",
    output_field="citation",
    parse_query=parse_citation,
    prompt_parts=citation_prompt,
    history_line=partial(labelled, layout=(("Paper Title", "title"), ("Citation", "citation"))),
    retrieval_query=partial(field_query, field="title"),
    retrieval_text=partial(joined, names=("title",)),
    item_text=partial(labelled, words=EMBED_WORDS, layout=(("Paper Title", "title"),)),
    document_text=partial(joined, names=("title", "abstract", "citation")),
    pairs=citation_pairs,
    proxy_pairs=title_to_abstract,
    clean=clean_choice,
)
