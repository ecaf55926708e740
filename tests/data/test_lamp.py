"""Raw LaMP files: what is read, what is refused, and that writing and reading are inverse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.data.lamp import outputs_path, read_lamp, write_lamp, write_lamp_files
from mta.errors import DataError, StorageError
from mta.records import HistoryItem, Query, User


def put(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def question(query_id: Any, **keys: Any) -> dict[str, Any]:
    return {"id": query_id, "input": f"ask {query_id}", "profile": [{"id": "p0", "text": "t", "score": 4}], **keys}


def golds(*ids: Any) -> dict[str, Any]:
    return {"task": "LaMP_3", "golds": [{"id": i, "output": f"gold {i}"} for i in ids]}


def lamp(folder: Path, questions: Any, outputs: Any = None) -> Path:
    if outputs is not None:
        put(folder / "dev_outputs.json", outputs)
    return put(folder / "dev_questions.json", questions)


def test_one_user_a_record_without_user_id(tmp_path: Path) -> None:
    users = read_lamp(lamp(tmp_path, [question(10), question("11")], golds("11", 10)))
    assert [user.user_id for user in users] == ["10", "11"]
    assert users[0].queries == (Query("10", "ask 10", "gold 10"),)
    assert users[0].history == (HistoryItem("p0", {"text": "t", "score": "4"}),)


def test_records_of_one_user_id_are_one_user(tmp_path: Path) -> None:
    records = [question("a-1", user_id="a"), question("b-1", user_id=7), question("a-2", user_id="a")]
    users = read_lamp(lamp(tmp_path, records))
    assert [(user.user_id, [q.query_id for q in user.queries]) for user in users] == [
        ("a", ["a-1", "a-2"]),
        ("7", ["b-1"]),
    ]
    assert len(users[0].history) == 1


def test_different_histories_of_one_user_id_are_refused(tmp_path: Path) -> None:
    records = [question("a-1", user_id="a"), question("a-2", user_id="a", profile=[])]
    with pytest.raises(DataError, match=r"record 1.*another history for user 'a'"):
        read_lamp(lamp(tmp_path, records))


def test_values_become_text_and_dates_become_time(tmp_path: Path) -> None:
    profile = [
        {"id": 3, "score": 5.0, "weight": 0.5, "date": 2017, "note": None},
        {"text": "no id", "time": "2020-01-02"},
        {"text": "neither", "date": None},
    ]
    history = read_lamp(lamp(tmp_path, [question("1", profile=profile)]))[0].history
    assert history == (
        HistoryItem("3", {"score": "5", "weight": "0.5", "note": ""}, "2017"),
        HistoryItem("1", {"text": "no id"}, "2020-01-02"),
        HistoryItem("2", {"text": "neither"}, None),
    )


def test_repeated_item_ids_are_made_unique_and_kept(tmp_path: Path) -> None:
    profile = [{"id": name, "text": str(k)} for k, name in enumerate(["x", "x", "x#2", "x", ""])]
    history = read_lamp(lamp(tmp_path, [question("1", profile=profile)]))[0].history
    assert [item.item_id for item in history] == ["x", "x#3", "x#2", "x#4", "4"]
    assert [item.get("text") for item in history] == ["0", "1", "2", "3", "4"]


def test_titles_without_abstract_join_the_history(tmp_path: Path) -> None:
    titles = [{"title": "T", "citation": "C", "date": "2001"}]
    record = question("u-1", user_id="u", profile=[{"id": "u-p0", "title": "A", "abstract": "B"}])
    users = read_lamp(lamp(tmp_path, [{**record, "profile_titles_only": titles}]))
    assert users[0].history[1] == HistoryItem("u-t0", {"title": "T", "citation": "C"}, "2001")


def test_empty_history_is_a_user(tmp_path: Path) -> None:
    assert read_lamp(lamp(tmp_path, [question("1", profile=[])]))[0].history == ()


def test_null_input_is_a_user_without_a_query_only_beside_user_id(tmp_path: Path) -> None:
    users = read_lamp(lamp(tmp_path, [question("1", user_id="u", input=None)], golds()))
    assert (users[0].user_id, users[0].queries) == ("u", ())
    with pytest.raises(DataError, match=r"'input': got null"):
        read_lamp(lamp(tmp_path, [question("1", input=None)]))


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = put(tmp_path / "q_questions.json", '[{"id": "1", "input": "a\\ud800b \\ud83d\\ude00", "profile": []}]')
    assert read_lamp(path)[0].queries[0].text == "a\ufffdb \U0001f600"


def test_gold_file_beside_or_named(tmp_path: Path) -> None:
    path = lamp(tmp_path, [question("1")])
    assert read_lamp(path)[0].queries[0].gold is None
    named = put(tmp_path / "elsewhere.json", golds("1"))
    assert read_lamp(path, golds=named)[0].queries[0].gold == "gold 1"
    with pytest.raises(DataError, match=r"no gold answers.*dev_outputs\.json"):
        read_lamp(path, need_golds=True)
    with pytest.raises(StorageError, match=r"nowhere\.json"):
        read_lamp(path, golds=tmp_path / "nowhere.json")


def test_ids_of_questions_and_golds_must_be_the_same(tmp_path: Path) -> None:
    path = lamp(tmp_path, [question(str(k)) for k in range(9)], golds("0", "1", "z"))
    with pytest.raises(DataError) as caught:
        read_lamp(path)
    message = str(caught.value)
    assert "7 questions without a gold answer ('2', '3', '4', '5', '6' and 2 more)" in message
    assert "1 gold answers without a question ('z')" in message


@pytest.mark.parametrize(
    ("questions", "outputs", "words"),
    [
        ([question("1"), question(1)], None, r"1 question ids more than once: '1'"),
        ([question("1")], golds("1", "1"), r"1 gold answer ids more than once"),
        ({"golds": []}, None, r"an object with keys 'golds'.*list of LaMP questions.*outputs file"),
        ("<!DOCTYPE html><html>", None, r"an HTML page"),
        ('[{"id": "1", "input": "x", "pro', None, r"not valid JSON.*cut off"),
        (["text"], None, r"record 0: got the text 'text'"),
        ([{"input": "x", "profile": []}], None, r"record 0.*wanted the key 'id'"),
        ([{"id": "1", "profile": []}], None, r"record 0 \(id '1'\).*wanted the key 'input'"),
        ([question("1", input=["x"])], None, r"'input': got a list of 1"),
        ([question("")], None, r"'id': got an empty text"),
        ([question(True)], None, r"'id': got the truth value True"),
        ([question("1", profile={})], None, r"'profile': got an empty object; wanted a list"),
        ([question("1", profile=["x"])], None, r"history item 0: got the text 'x'"),
        ([question("1", profile=[{"text": {"a": 1}}])], None, r"history item 0, 'text': got an object"),
        ([question("1", profile_titles_only=[3])], None, r"'profile_titles_only', history item 0: got the number 3"),
        ([question("1")], [{"id": "1"}], r"got a list of 1; wanted an object"),
        ([question("1")], {"golds": [{"id": "1"}]}, r"gold 0.*wanted the key 'output'"),
        ([question("1")], {"golds": [{"id": "1", "output": None}]}, r"gold 0 \(id '1'\), 'output': got null"),
        ('[{"id": 1, "input": NaN, "profile": []}]', None, r"'input': got the number nan"),
        ('[{"id": ' + "9" * 5000 + "}]", None, r"not valid JSON"),
        ("[" * 100_000, None, r"not valid JSON"),
        ("", None, r"not valid JSON"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, questions: Any, outputs: Any, words: str) -> None:
    with pytest.raises(DataError, match=r"(?s)_(questions|outputs)\.json.*" + words):
        read_lamp(lamp(tmp_path, questions, outputs))


def test_outputs_path_follows_the_questions_name() -> None:
    assert outputs_path(Path("a/pool_questions.json")) == Path("a/pool_outputs.json")
    assert outputs_path(Path("a/questions.json")) == Path("a/outputs.json")
    assert outputs_path(Path("a/test_100.json")) == Path("a/test_100_outputs.json")


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
fields = st.dictionaries(st.sampled_from(["text", "title", "score"]), names, max_size=3)


@st.composite
def people(draw: st.DrawFn) -> list[User]:
    answered = draw(st.booleans())
    users = []
    for number, user_id in enumerate(draw(st.lists(names, unique=True, max_size=4))):
        items = draw(st.lists(st.tuples(fields, st.none() | names), max_size=4))
        history = tuple(HistoryItem(f"i{k}", f, time) for k, (f, time) in enumerate(items))
        asked = draw(st.lists(names, max_size=3))
        queries = tuple(Query(f"{number}-{k}", text, text[::-1] if answered else None) for k, text in enumerate(asked))
        users.append(User(user_id, history, queries))
    return users


@settings(max_examples=60, deadline=None)
@given(users=people())
def test_write_then_read_gives_the_same_users(tmp_path_factory: pytest.TempPathFactory, users: list[User]) -> None:
    path = tmp_path_factory.mktemp("pair") / "x_questions.json"
    write_lamp(users, path, task_name="LaMP_9")
    assert read_lamp(path) == users


def test_write_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x_questions.json"
    one, two = Query("1", "a", "b"), Query("2", "a")
    with pytest.raises(DataError, match="1 of 2 queries"):
        write_lamp([User("u", (), (one, two))], path, task_name="LaMP_3")
    with pytest.raises(DataError, match="question ids more than once"):
        write_lamp([User("u", (), (one,)), User("v", (), (one,))], path, task_name="LaMP_3")
    with pytest.raises(DataError, match="user ids more than once"):
        write_lamp([User("u", ()), User("u", ())], path, task_name="LaMP_3")
    with pytest.raises(DataError, match="history item 'i': got a field 'date'"):
        write_lamp([User("u", (HistoryItem("i", {"date": "x"}),))], path, task_name="LaMP_3")
    write_lamp([User("u", (), (one,))], path, task_name="LaMP_3")
    assert json.loads((tmp_path / "x_outputs.json").read_text())["task"] == "LaMP_3"
    with pytest.raises(DataError, match="outputs file that belongs to other questions"):
        write_lamp([User("u", (), (two,))], path, task_name="LaMP_3")


def test_of_several_pairs_all_are_written_or_none(tmp_path: Path) -> None:
    good, bad = User("u", (), (Query("1", "a", "b"),)), User("v", (), (Query("1", "a", "b"), Query("2", "a")))
    with pytest.raises(DataError, match=r"bad_questions\.json: got gold answers for 1 of 2 queries"):
        write_lamp_files(
            {tmp_path / "good_questions.json": [good], tmp_path / "bad_questions.json": [bad]}, task_name=""
        )
    assert not list(tmp_path.iterdir())


TITLES_ONLY = {"pool": 2493, "target": 486}
COUNTS = [
    ("LaMP_1", "pool", 200, 200, 4971),
    ("LaMP_1", "target", 50, 150, 1275),
    ("LaMP_2", "pool", 190, 190, 2334),
    ("LaMP_2", "target", 37, 153, 329),
    ("LaMP_3", "pool", 224, 224, 1807),
    ("LaMP_3", "target", 33, 139, 621),
    ("LaMP_3_critics", "pool", 334, 334, 13061),
    ("LaMP_3_critics", "target", 50, 250, 2385),
    ("LaMP_4", "pool", 139, 139, 5623),
    ("LaMP_4", "target", 51, 139, 485),
    ("LaMP_5", "pool", 150, 150, 4642),
    ("LaMP_5", "target", 50, 100, 1512),
]


@pytest.mark.parametrize(("folder", "side", "count", "queries", "items"), COUNTS)
def test_real_files(lamp_real: Path, folder: str, side: str, count: int, queries: int, items: int) -> None:
    users = read_lamp(lamp_real / folder / f"{side}_questions.json", need_golds=True)
    extra = TITLES_ONLY[side] if folder == "LaMP_1" else 0
    assert (len(users), sum(len(user.queries) for user in users)) == (count, queries)
    assert sum(len(user.history) for user in users) == items + extra
    assert sum(item.item_id.startswith(f"{user.user_id}-t") for user in users for item in user.history) == extra
    assert all(query.gold for user in users for query in user.queries)
