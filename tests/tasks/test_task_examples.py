"""Training pairs and examples: leave-one-out, skipped items, LaMP-1's options, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.errors import DataError
from mta.records import HistoryItem, Query, User
from mta.tasks import get_task
from mta.tasks.examples import NOT_A_LABEL, query_examples, training_examples

MOVIES = get_task("lamp-2")
CITATION = get_task("lamp-1")

MOVIE_INPUT = "Which tag ...? tags: [sci-fi, comedy] description: {}"


def movie_user(*items: tuple[str, str], queries: tuple[Query, ...] = ()) -> User:
    history = tuple(HistoryItem(f"i{n}", {"description": text, "tag": tag}) for n, (text, tag) in enumerate(items))
    return User("u", history, queries)


def paper_user(*papers: tuple[str, str], user_id: str = "u") -> User:
    """Papers as (title, citation); a blank citation leaves the field out."""
    history = tuple(
        HistoryItem(f"p{n}", {"title": title} | ({"citation": cited} if cited else {}))
        for n, (title, cited) in enumerate(papers)
    )
    return User(user_id, history)


WORD = st.sampled_from(["robot", "dog", "sea", "war", ""])
ITEMS = st.lists(st.tuples(st.lists(WORD, max_size=4).map(" ".join), st.sampled_from(["comedy", "action"])), max_size=9)


@given(items=ITEMS, history_k=st.integers(0, 4))
def test_leave_one_out_never_shows_the_item_itself(items: list[tuple[str, str]], history_k: int) -> None:
    user = movie_user(*items)
    made = training_examples(MOVIES, user, history_k=history_k, seed=0)
    assert len(made.examples) + made.skipped == len(items)
    for example in made.examples:
        shown = [item.item_id for item in example.history]
        assert example.example_id not in shown
        assert len(set(shown)) == len(shown) == min(history_k, len(items) - 1)


def test_examples_carry_fields_answer_and_the_closest_other_item() -> None:
    user = movie_user(("a robot at sea", "sci-fi"), ("a dog at war", "action"), ("a robot laughs", "Comedy "))
    made = training_examples(MOVIES, user, history_k=1, seed=0)
    assert made.source == "history items"
    assert made.skipped == 0
    assert [dict(example.fields) for example in made.examples] == [
        {"description": "a robot at sea"}, {"description": "a dog at war"}, {"description": "a robot laughs"}
    ]  # fmt: skip
    assert [example.answer for example in made.examples] == ["sci-fi", "action", "comedy"]
    assert [example.example_id for example in made.examples] == ["i0", "i1", "i2"]
    assert {example.user_id for example in made.examples} == {"u"}
    assert [item.item_id for item in made.examples[2].history] == ["i0"]


def test_most_relevant_history_comes_first() -> None:
    user = movie_user(("red", "comedy"), ("dog", "comedy"), ("sea dog", "comedy"), ("old sea dog", "comedy"))
    made = training_examples(MOVIES, user, history_k=3, seed=0)
    assert [item.item_id for item in made.examples[3].history] == ["i2", "i1", "i0"]


def test_empty_history_gives_no_examples() -> None:
    made = training_examples(MOVIES, movie_user(), history_k=1, seed=0)
    assert (made.examples, made.skipped) == ((), 0)


def test_one_item_gives_one_example_with_nothing_shown() -> None:
    (example,) = training_examples(MOVIES, movie_user(("a dog", "action")), history_k=2, seed=0).examples
    assert example.history == ()
    assert example.answer == "action"


def test_items_that_cannot_be_asked_about_are_counted() -> None:
    user = movie_user(("", "comedy"), ("a dog", " "), ("a dog", "western"), ("a cat", "comedy"))
    made = training_examples(MOVIES, user, history_k=1, seed=0)
    assert made.reasons == {"blank description": 1, "blank tag": 1, NOT_A_LABEL: 1}
    assert made.skipped == 3
    assert [example.example_id for example in made.examples] == ["i3"]


def test_ratings_with_decimals_of_zero_are_labels() -> None:
    user = User("u", (HistoryItem("1", {"text": "ok", "score": "4.0"}), HistoryItem("2", {"text": "no", "score": "9"})))
    made = training_examples(get_task("lamp-3"), user, history_k=1, seed=0)
    assert [example.answer for example in made.examples] == ["4"]
    assert made.reasons == {NOT_A_LABEL: 1}


def test_placeholder_abstracts_are_skipped() -> None:
    abstracts = ["Without abstract", "No abstract available.", "", "We prove it."]
    history = tuple(HistoryItem(str(n), {"abstract": text, "title": "T"}) for n, text in enumerate(abstracts))
    made = training_examples(get_task("lamp-5"), User("u", history), history_k=1, seed=0)
    assert [example.example_id for example in made.examples] == ["3"]
    assert made.reasons == {"blank abstract": 3}


def test_queries_see_the_whole_history() -> None:
    queries = (Query("q1", MOVIE_INPUT.format("a dog"), " Comedy "), Query("q2", MOVIE_INPUT.format("sea")))
    user = movie_user(("at sea", "action"), ("a dog", "comedy"), queries=queries)
    first, second = query_examples(MOVIES, user, history_k=1)
    assert [item.item_id for item in first.history] == ["i1"]
    assert [item.item_id for item in second.history] == ["i0"]
    assert (first.example_id, first.user_id, first.answer) == ("q1", "u", "comedy")
    assert dict(first.fields) == {"description": "a dog"}
    assert second.answer == ""


def test_queries_of_an_empty_history_show_nothing() -> None:
    (example,) = query_examples(MOVIES, movie_user(queries=(Query("q", MOVIE_INPUT.format("x")),)), history_k=3)
    assert example.history == ()


def test_unparsable_query_names_user_and_query() -> None:
    user = movie_user(("a dog", "comedy"), queries=(Query("110", "x A man walks", "comedy"),))
    with pytest.raises(DataError, match=r"^user 'u', query '110': LaMP-2 input lacks the description"):
        query_examples(MOVIES, user, history_k=1)


def test_gold_that_is_no_label_is_refused() -> None:
    user = movie_user(queries=(Query("q", MOVIE_INPUT.format("x"), "western"),))
    with pytest.raises(DataError, match=r"user 'u', query 'q': the gold answer 'western' is not one of sci-fi, "):
        query_examples(MOVIES, user, history_k=1)


@pytest.mark.parametrize("make", [
    lambda user: training_examples(MOVIES, user, history_k=1, seed=0),
    lambda user: query_examples(MOVIES, user, history_k=1),
])  # fmt: skip
def test_missing_field_names_user_item_field_and_what_is_there(make) -> None:  # type: ignore[no-untyped-def]
    user = User("ann/1", (HistoryItem("7", {"text": "a", "category": "b", "description": "c"}),))
    with pytest.raises(DataError) as caught:
        make(user)
    assert "user 'ann/1', history item '7' has no field 'tag' (it has: category, description, text)" in str(
        caught.value
    )


def test_items_with_one_id_are_refused() -> None:
    item = HistoryItem("7", {"description": "a", "tag": "comedy"})
    with pytest.raises(DataError, match="2 history items with the id '7'"):
        training_examples(MOVIES, User("u", (item, item)), history_k=1, seed=0)


PAPERS = (("deep nets", "Nets 1990"), ("wide deep nets", "Nets 2000"), ("fish", "Cod"), ("nets", ""))


def test_citation_pairs_take_the_closest_other_citation() -> None:
    made = training_examples(CITATION, paper_user(*PAPERS), history_k=2, seed=0)
    assert made.source == "citation items"
    assert made.reasons == {"no citation": 1}
    options = [{e.fields["option_1"], e.fields["option_2"]} for e in made.examples]
    assert options == [{"Nets 1990", "Nets 2000"}, {"Nets 2000", "Nets 1990"}, {"Cod", "Nets 1990"}]
    for example, (title, cited) in zip(made.examples, PAPERS, strict=False):
        assert example.fields["title"] == title
        assert example.fields[{"[1]": "option_1", "[2]": "option_2"}[example.answer]] == cited


def test_items_that_cite_an_option_are_not_shown() -> None:
    made = training_examples(CITATION, paper_user(*PAPERS, ("deep", "nets 1990 ")), history_k=9, seed=0)
    shown = [[item.item_id for item in example.history] for example in made.examples]
    assert shown == [["p3", "p2"], ["p3", "p2"], ["p1", "p3"], ["p2", "p3"]]


def test_distractor_differs_also_in_more_than_case_and_spacing() -> None:
    made = training_examples(CITATION, paper_user(("a b", "Cod"), ("a b", " cod"), ("c", "Eel")), history_k=1, seed=0)
    assert [{e.fields["option_1"], e.fields["option_2"]} for e in made.examples[:2]] == [{"Cod", "Eel"}, {"cod", "Eel"}]


def test_equal_citations_give_no_pair_and_are_counted() -> None:
    made = training_examples(CITATION, paper_user(("a", "Cod"), ("b", "Cod"), ("c", "")), history_k=1, seed=0)
    assert made.examples == ()
    assert made.reasons == {"no citation": 1, "no other item with a different citation": 2}


def answers(seed: int, user_id: str) -> list[str]:
    user = paper_user(*((f"paper {n}", f"cited {n}") for n in range(200)), user_id=user_id)
    return [example.answer for example in training_examples(CITATION, user, history_k=0, seed=seed).examples]


def test_option_order_is_seeded_stable_and_balanced() -> None:
    first = answers(0, "ann")
    assert first == answers(0, "ann")
    assert first != answers(1, "ann")
    assert first != answers(0, "bob")
    assert 70 < first.count("[1]") < 130  # 200 coins: four standard deviations are 28
    assert "".join(answer[1] for answer in first[:8]) == FIRST_COINS


FIRST_COINS = "12121111"  # known answer: the same in every process and on every machine


def test_proxy_is_used_only_on_request_and_only_without_citations() -> None:
    history = (
        HistoryItem("1", {"title": "Nets", "abstract": "We knot."}),
        HistoryItem("2", {"title": "Fish"}),
    )
    user = User("u", history)
    plain = training_examples(CITATION, user, history_k=1, seed=0)
    assert (plain.examples, plain.source, plain.reasons) == ((), "citation items", {"no citation": 2})
    proxy = training_examples(CITATION, user, history_k=1, seed=0, allow_proxy=True)
    assert (proxy.source, proxy.reasons) == ("title to abstract", {"blank abstract": 1})
    (example,) = proxy.examples
    assert (dict(example.fields), example.answer) == ({"title": "Nets"}, "We knot.")
    assert CITATION.prompt_parts(example.fields) == (
        "### User Instruction:\nWrite an abstract for this title.\nTitle: ", "Nets", " Abstract:"
    )  # fmt: skip
    cited = training_examples(CITATION, paper_user(*PAPERS), history_k=1, seed=0, allow_proxy=True)
    assert cited.source == "citation items"


def real_users(folder: Path, split: str) -> list[User]:
    users: dict[str, User] = {}
    for question in json.loads((folder / f"{split}_questions.json").read_text()):
        history = tuple(
            HistoryItem(str(item["id"]), {key: str(value) for key, value in item.items() if key not in ("id", "date")})
            for item in question["profile"]
        )
        users.setdefault(str(question["user_id"]), User(str(question["user_id"]), history))
    return list(users.values())[:8]


@pytest.mark.parametrize("folder", ["LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5"])
def test_real_histories_become_examples(lamp_real: Path, folder: str) -> None:
    task = get_task(folder)
    for user in real_users(lamp_real / folder, "target"):
        made = training_examples(task, user, history_k=1, seed=0)
        assert len(made.examples) + made.skipped == len(user.history)
        assert all(e.example_id not in {item.item_id for item in e.history} for e in made.examples)
        assert all(e.answer for e in made.examples)
