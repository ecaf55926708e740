"""Whole prompts against texts written out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mta.config import PromptConfig
from mta.errors import DataError
from mta.prompting import render
from mta.records import Example, HistoryItem
from mta.tasks import TASKS, get_task

GOLDEN = {
    "lamp-1": (
        {"title": "Deep Nets", "option_1": "Old Nets", "option_2": "Fish"},
        {"title": "Wide Nets", "citation": "Some Nets", "abstract": "not shown"},
        "### User History:\n"
        "Paper Title: Wide Nets Citation: Some Nets\n"
        "\n"
        "### User Instruction:\n"
        'For an author who has written the paper with the title "Deep Nets", which reference is related? '
        "Just answer with [1] or [2] without explanation.\n"
        "Reference: [1] - Old Nets [2] - Fish\n"
        "Answer:",
    ),
    "lamp-2": (
        {"description": "A robot jokes."},
        {"description": "A dog runs.", "tag": "action"},
        "### User History:\n"
        "Description: A dog runs. Tag: action\n"
        "\n"
        "### User Instruction:\n"
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without "
        "further explanation. tags: [sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, "
        "classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story]\n"
        "Description: A robot jokes. Tag:",
    ),
    "lamp-3": (
        {"text": "Broke at once."},
        {"text": "Lovely.", "score": "5"},
        "### User History:\n"
        "Review: Lovely. Score: 5\n"
        "\n"
        "### User Instruction:\n"
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation.\n"
        "Review: Broke at once. Score:",
    ),
    "lamp-4": (
        {"text": "It rained."},
        {"text": "It snowed.", "title": "Snow!"},
        "### User History:\n"
        "Article: It snowed. Headline: Snow!\n"
        "\n"
        "### User Instruction:\n"
        "Generate a headline for the following article.\n"
        "Article: It rained. Headline:",
    ),
    "lamp-5": (
        {"abstract": "We prove it."},
        {"abstract": "We try.", "title": "A Trial"},
        "### User History:\n"
        "abstract: We try. title: A Trial\n"
        "\n"
        "### User Instruction:\n"
        "Generate a title for the following abstract of a paper.\n"
        "Abstract: We prove it. Title:",
    ),
    "own": (
        {"input": "Say hello."},
        {"input": "Say bye.", "output": "Bye!"},
        "### User History:\nInput: Say bye. Output: Bye!\n\n### User Instruction:\nSay hello.\nOutput:",
    ),
}
GOLDEN["own-by-id"] = GOLDEN["own"]


def example(fields: Mapping[str, str], *items: Mapping[str, str]) -> Example:
    history = tuple(HistoryItem(str(place), item) for place, item in enumerate(items))
    return Example(example_id="e", user_id="u", fields=fields, answer="", history=history)


def test_every_task_has_a_golden_prompt() -> None:
    assert set(GOLDEN) == set(TASKS)


@pytest.mark.parametrize("task_id", GOLDEN)
def test_prompt_equals_the_one_written_by_hand(task_id: str) -> None:
    fields, item, text = GOLDEN[task_id]
    assert render(get_task(task_id), example(fields, item), PromptConfig()).text == text


@pytest.mark.parametrize("task_id", GOLDEN)
def test_prompt_without_history_starts_with_the_instruction(task_id: str) -> None:
    fields, item, text = GOLDEN[task_id]
    instruction = text[text.index("### User Instruction:") :]
    assert render(get_task(task_id), example(fields), PromptConfig()).text == instruction
    assert render(get_task(task_id), example(fields, item), PromptConfig(history_k=0)).text == instruction


def test_history_is_cut_to_the_most_relevant_items() -> None:
    task = get_task("lamp-4")
    items = [{"text": f"t{number}", "title": f"h{number}"} for number in range(3)]
    prompt = render(task, example({"text": "x"}, *items), PromptConfig(history_k=2))
    assert prompt.history == ("Article: t0 Headline: h0", "Article: t1 Headline: h1")
    assert prompt.text.startswith(
        "### User History:\nArticle: t0 Headline: h0\nArticle: t1 Headline: h1\n\n### User Instruction:\n"
    )


def test_words_are_cut_in_each_field_and_in_the_payload_alone() -> None:
    task = get_task("lamp-4")
    made = example({"text": "one two  three four five"}, {"text": "a b c d", "title": "t u v w"})
    prompt = render(task, made, PromptConfig(history_words=2, input_words=3))
    assert prompt.history == ("Article: a b Headline: t u",)
    assert prompt.payload == "one two  three"
    assert prompt.head == "### User Instruction:\nGenerate a headline for the following article.\nArticle: "
    assert prompt.tail == " Headline:"


def test_citation_options_are_never_cut() -> None:
    fields = {"title": "a b c", "option_1": "d e f", "option_2": "g h i"}
    prompt = render(get_task("lamp-1"), example(fields), PromptConfig(input_words=1))
    assert prompt.payload == "a"
    assert prompt.tail.endswith("\nReference: [1] - d e f [2] - g h i\nAnswer:")


def test_item_without_citation_shows_its_title_only() -> None:
    line = get_task("lamp-1").history_line(HistoryItem("1", {"title": "Wide Nets"}), 10)
    assert line == "Paper Title: Wide Nets"


@pytest.mark.parametrize(
    ("task_id", "fields", "missing"),
    [
        ("lamp-2", {"text": "x"}, "description"),
        ("lamp-1", {"title": "x", "option_1": "y"}, "option_2"),
        ("lamp-1", {"option_1": "y", "option_2": "z"}, "title"),
        ("own", {}, "input"),
    ],
)
def test_a_missing_field_is_named(task_id: str, fields: dict[str, str], missing: str) -> None:
    with pytest.raises(DataError, match=f"no field '{missing}'"):
        render(get_task(task_id), example(fields), PromptConfig())
