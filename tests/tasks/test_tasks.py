"""The tasks as values: names, parsers, texts and the reading of completions."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mta.errors import DataError, NotFound
from mta.records import HistoryItem
from mta.tasks import TASKS, get_task
from mta.tasks.movie_tagging import TAGS
from mta.tasks.task import Task
from mta.tasks.texts import cut_words, first_line

RAW = {
    "lamp-1": (
        'For an author who has written the paper with the title "T", which reference is related? Just answer with '
        '[1] or [2] without explanation. [1]: "A" [2]: "B"',
        {"title": "T", "option_1": "A", "option_2": "B"},
    ),
    "lamp-2": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        f"explanation. tags: [{', '.join(TAGS)}] description: A robot. description: again",
        {"description": "A robot. description: again"},
    ),
    "lamp-3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: Fine.\nReally: fine.",
        {"text": "Fine.\nReally: fine."},
    ),
    "lamp-4": ("Generate a headline for the following article: It rained.", {"text": "It rained."}),
    "lamp-5": (
        "Generate a title for the following abstract of a paper: We prove it.",
        {"abstract": "We prove it."},
    ),
    **dict.fromkeys(("own", "own-by-id"), ("  Anything: goes here. ", {"input": "Anything: goes here."})),
}

TITLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp"))).filter(
    lambda title: "[" not in title and title == title.strip()
)
QUOTED = st.lists(st.sampled_from(['"', "a", " ", "[1]", "[2]", ",", "?", "which", ":"]), max_size=8).map("".join)


@pytest.mark.parametrize("task_id", RAW)
def test_raw_input_parses(task_id: str) -> None:
    raw, fields = RAW[task_id]
    assert get_task(task_id).parse_query(raw) == fields


@pytest.mark.parametrize("task_id", RAW)
def test_parsed_fields_are_what_the_prompt_needs(task_id: str) -> None:
    task = get_task(task_id)
    head, payload, tail = task.prompt_parts(task.parse_query(RAW[task_id][0]))
    assert head.startswith("### User Instruction:\n")
    assert payload in RAW[task_id][0]
    assert tail.endswith(":")


def lamp_1_input(title: str, first: str, second: str, gap: str = " ") -> str:
    return (
        f'For an author who has written the paper with the title "{title}", which reference is related?{gap}Just '
        f'answer with [1] or [2] without explanation.{gap}[1]: "{first}"{gap}[2]: "{second}"'
    )


@given(title=TITLE, first=TITLE, second=TITLE)
def test_titles_survive_the_round_trip(title: str, first: str, second: str) -> None:
    fields = get_task("lamp-1").parse_query(lamp_1_input(title, first, second))
    assert fields == {"title": title, "option_1": first, "option_2": second}


@given(title=QUOTED, first=QUOTED, second=QUOTED)
def test_titles_with_quotes_and_marks_survive(title: str, first: str, second: str) -> None:
    assume(not re.search(r'"[ ,]*\[2\] *:', first))  # such a title cannot be told from the text around it
    fields = get_task("lamp-1").parse_query(lamp_1_input(title, first, second))
    assert fields == {"title": title.strip(), "option_1": first.strip(), "option_2": second.strip()}


@pytest.mark.parametrize(
    ("title", "first", "second"),
    [
        ('"Yes" and "No"', 'A "quoted" word', 'All "quoted"'),
        ('Ends with "quotes"', '"Starts" so', '"Whole"'),
        ("It's 5'10\"", 'x"', '"'),
    ],
)
@pytest.mark.parametrize("gap", [" ", "\n", "  \t "])
def test_quotes_and_odd_spacing(title: str, first: str, second: str, gap: str) -> None:
    fields = get_task("lamp-1").parse_query(lamp_1_input(title, first, second, gap) + gap)
    assert fields == {"title": title, "option_1": first, "option_2": second}


@pytest.mark.parametrize(
    ("raw", "lacks"),
    [
        ("Which of these?", "paper's title"),
        ('written the paper with the title "T" and more', "paper's title"),
        (lamp_1_input("T", "A", "B").replace("[1]:", "(1)"), "two options"),
        (lamp_1_input("T", "A", "B").replace("[2]:", "(2)"), "two options"),
        (lamp_1_input("T", "A", "B")[:-1], "closing quote of option [2]"),
        ("", "paper's title"),
    ],
)
def test_a_broken_lamp_1_input_says_what_is_missing(raw: str, lacks: str) -> None:
    with pytest.raises(DataError) as caught:
        get_task("lamp-1").parse_query(raw)
    assert f"lacks the {lacks}: it reads" in str(caught.value)
    assert "correct or remove" in str(caught.value)


@pytest.mark.parametrize(
    ("task_id", "raw", "lacks"),
    [
        ("lamp-2", "x A man walks into a bar and nothing else happens", "description"),
        ("lamp-2", "Which tag does this movie relate to? tags: [sci-fi, comedy]", "description"),
        ("lamp-3", "review: Nice.", "text"),
        ("lamp-4", "Generate a title for the following abstract of a paper: X", "text"),
        ("lamp-5", "Generate a headline for the following article: X", "abstract"),
    ],
)
def test_a_malformed_input_says_what_is_missing(task_id: str, raw: str, lacks: str) -> None:
    task = get_task(task_id)
    with pytest.raises(DataError) as caught:
        task.parse_query(raw)
    message = str(caught.value)
    assert message.startswith(f"{task.lamp_name.replace('_', '-')} input lacks the {lacks}: it reads '{raw[:20]}")
    assert "should read '" in message
    assert len(message) < 400


def test_own_input_must_not_be_blank() -> None:
    with pytest.raises(DataError, match="input is blank"):
        get_task("own").parse_query(" \n")


@pytest.mark.parametrize("name", ["lamp-2", "movie_tagging", "LaMP_2", "LaMP-2", "lamp_2", "movie-tagging", " lamp-2 "])
def test_task_is_found_by_any_of_its_names(name: str) -> None:
    assert get_task(name) is TASKS["lamp-2"]


def test_unknown_task_lists_those_there_are() -> None:
    with pytest.raises(NotFound) as caught:
        get_task("lamp-9")
    assert str(caught.value) == "unknown task 'lamp-9'; known: lamp-1, lamp-2, lamp-3, lamp-4, lamp-5, own, own-by-id"


def test_names_are_unique() -> None:
    names = [name for task in TASKS.values() for name in {task.task_id, task.slug, task.lamp_name}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_settings_agree_with_the_kind(task: Task) -> None:
    expected = {
        "label": ("accuracy", "macro_f1"),
        "rating": ("mae", "rmse"),
        "text": ("rouge_1", "rouge_l"),
    }
    assert task.metrics == expected[task.kind]
    assert bool(task.labels) == (task.kind != "text")
    assert task.input_field in task.required_fields


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_can_be_sent_to_another_process(task: Task) -> None:
    copy = pickle.loads(pickle.dumps(task))
    raw = RAW[task.task_id][0]
    assert copy.prompt_parts(copy.parse_query(raw)) == task.prompt_parts(task.parse_query(raw))


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.task_id)
def test_clean_keeps_every_label(task: Task) -> None:
    for label in task.labels:
        for completion in (label, f" {label}\n", f"{label}.", f"{label}\n### User History:\nmore"):
            assert task.clean(completion) == label
        assert task.normal_answer(f" {label} ") == label


@pytest.mark.parametrize(
    ("task_id", "completion", "answer"),
    [
        ("lamp-1", " 2", "[2]"),
        ("lamp-1", "1. [2]", "[2]"),
        ("lamp-1", "[1 and more", "[1]"),
        ("lamp-1", "2010 was it", "2010 was it"),
        ("lamp-1", "1.5", "1.5"),
        ("lamp-1", "neither", "neither"),
        ("lamp-2", "Dark Comedy", "dark comedy"),
        ("lamp-2", "The tag is Thought-Provoking!", "thought-provoking"),
        ("lamp-2", "classical music", "classical music"),
        ("lamp-2", "romance, comedy", "romance"),
        ("lamp-2", "none\ncomedy", "none"),
        ("lamp-2", "", ""),
        ("lamp-3", "4 out of 5", "4"),
        ("lamp-3", "5/5", "5"),
        ("lamp-3", "4.5 stars", "4.5"),
        ("lamp-3", "10", "10"),
        ("lamp-3", "5.5", "5.5"),
        ("lamp-3", "2019 was good", "2019 was good"),
        ("lamp-3", "3,000", "3,000"),
        ("lamp-3", "good", "good"),
        ("lamp-4", "\n Rain in U.S. v2.0 \nmore", "Rain in U.S. v2.0"),
        ("lamp-5", "A Title. And more", "A Title. And more"),
        ("lamp-5", " \n ", ""),
        ("own", " Dear all,\n\nbye \n### User History:\nx", "Dear all,\n\nbye"),
        ("own", "### User Instruction:", ""),
        ("own", "a ### b", "a ### b"),
    ],
)
def test_clean_reads_the_answer(task_id: str, completion: str, answer: str) -> None:
    assert get_task(task_id).clean(completion) == answer


def test_gold_answers_are_brought_to_the_labels() -> None:
    assert get_task("lamp-3").normal_answer(" 4.0 ") == "4"
    assert get_task("lamp-3").normal_answer("4.5") == "4.5"
    assert get_task("lamp-2").normal_answer("Sci-Fi") == "sci-fi"
    assert get_task("lamp-2").normal_answer("Western") == "Western"
    assert get_task("lamp-4").normal_answer(" Big News ") == "Big News"


@given(text=st.text(alphabet="ab \n\t"), count=st.integers(1, 5))
def test_cut_words_keeps_the_first_words_and_their_layout(text: str, count: int) -> None:
    cut = cut_words(text, count)
    assert cut.split() == text.split()[:count]
    assert cut in text
    assert cut == cut.strip()


def test_first_line() -> None:
    assert first_line("\n\n  one \ntwo") == "one"
    assert first_line("") == ""


LONG = " ".join(["w"] * 400)
CUT = " ".join(["w"] * 368)


@pytest.mark.parametrize(
    ("task_id", "fields", "item_text", "document", "searched"),
    [
        ("lamp-1", {"title": "T", "abstract": "A", "citation": "C"}, "Paper Title: T", "T A C", "T"),
        ("lamp-1", {"title": "T", "citation": "C"}, "Paper Title: T", "T C", "T"),
        ("lamp-2", {"description": LONG, "tag": "g"}, f"Description: {CUT} Tag: g", f"g {LONG}", f"{LONG} g"),
        ("lamp-3", {"text": "r", "score": "4"}, "Review: r Score: 4", "r", "r"),
        ("lamp-4", {"text": "x", "title": LONG}, f"Article: x Headline: {CUT}", f"{LONG} x", f"{LONG} x"),
        ("lamp-5", {"abstract": "a", "title": "t"}, "abstract: a title: t", "t a", "a"),
        ("own", {"input": "i", "output": "o"}, "Input: i Output: o", "i o", "i o"),
    ],
)
def test_texts_of_an_item(task_id: str, fields: dict[str, str], item_text: str, document: str, searched: str) -> None:
    task, item = get_task(task_id), HistoryItem("1", fields)
    assert task.item_text(item) == item_text
    assert task.document_text(item) == document
    assert task.retrieval_text(item) == searched


FOLDERS = ["LaMP_1", "LaMP_2", "LaMP_3", "LaMP_3_critics", "LaMP_4", "LaMP_5"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_real_query_parses_and_every_gold_is_a_label(lamp_real: Path, folder: str) -> None:
    task = get_task(folder.removesuffix("_critics"))
    for split in ("pool", "target"):
        questions = json.loads((lamp_real / folder / f"{split}_questions.json").read_text())
        outputs = json.loads((lamp_real / folder / f"{split}_outputs.json").read_text())
        assert all(all(task.parse_query(question["input"]).values()) for question in questions)
        golds = {task.normal_answer(gold["output"]) for gold in outputs["golds"]}
        assert not task.labels or golds <= set(task.labels)
        assert {question["id"] for question in questions} == {gold["id"] for gold in outputs["golds"]}
