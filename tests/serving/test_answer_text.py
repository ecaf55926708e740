"""Answers grow piece by piece, and the pieces together are the answer."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mta.serving.answer_text import AnswerText
from mta.tasks import get_task


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def pieces(text: str, **options: object) -> list[str]:
    answer = AnswerText(decode, **options)  # type: ignore[arg-type]
    return [*map(answer.add, text.encode()), answer.finish()]


@given(st.text(max_size=40))
def test_the_pieces_together_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_halves_of_characters_are_held_back() -> None:
    assert pieces("aä€") == ["a", "", "ä", "", "", "€", ""]


@given(st.text(alphabet="ab#\n ", max_size=60))
def test_what_is_cleaned_in_pieces_is_what_is_cleaned_whole(text: str) -> None:
    for task in ("own", "lamp-4", "lamp-5"):
        clean: Callable[[str], str] = get_task(task).clean
        assert "".join(pieces(text, clean=clean)) == clean(text)


def test_labels_come_whole() -> None:
    clean = get_task("lamp-2").clean
    found = pieces(" comedy\nbecause", clean=clean, whole=True)
    assert set(found[:-1]) == {""}
    assert found[-1] == clean(" comedy\nbecause")


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="abS", max_size=10))
def test_nothing_at_or_behind_a_stop_is_said(before: str, after: str) -> None:
    assert "".join(pieces(f"{before}STOP{after}", stop=("STOP", "never"))) == before


def test_it_says_that_it_stopped() -> None:
    answer = AnswerText(decode, stop=("xy",))
    said = [answer.add(token) for token in b"abxyz"]
    assert answer.stopped
    assert "".join([*said, answer.finish()]) == "ab"
