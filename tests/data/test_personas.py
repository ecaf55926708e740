"""Invented people: same seed same files, exact ceilings, and answers that depend on who is asked."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from mta.data.jsonl import read_jsonl_users
from mta.data.lamp import read_lamp
from mta.data.persona_shapes import SHAPES, TAGS
from mta.data.persona_texts import GROUPS, PLACES, SCHOOLS
from mta.data.personas import (
    Personas,
    group_likes,
    ideal_answer,
    make_personas,
    make_pool_and_targets,
    write_personas,
)
from mta.errors import ConfigError, NotFound, StorageError
from mta.records import Query
from mta.tasks import get_task
from mta.tasks.examples import query_examples, training_examples

ALL_TASKS = tuple(SHAPES)
LAMP_TASKS = tuple(name for name in ALL_TASKS if name != "own")
LABEL_TASKS = ("lamp-1", "lamp-2")
TEXT_TASKS = ("lamp-4", "lamp-5", "own")
KEY_FIELD = {
    "lamp-1": "title",
    "lamp-2": "description",
    "lamp-3": "text",
    "lamp-4": "text",
    "lamp-5": "abstract",
    "own": "input",
}
PROFILE_KEYS = {
    "lamp-1": {"id", "title", "abstract", "citation"},
    "lamp-2": {"id", "description", "tag"},
    "lamp-3": {"id", "text", "score"},
    "lamp-4": {"id", "text", "title"},
    "lamp-5": {"id", "title", "abstract"},
}
RAW_INPUT = {
    "lamp-1": r'For an author who has written the paper with the title "(?P<payload>[^"]+)", '
    r'which reference is related\? Just answer with \[1\] or \[2\] without explanation\. \[1\]: "[^"]+" \[2\]: "[^"]+"',
    "lamp-2": r"Which tag does this movie relate to among the following tags\? Just answer with the tag name without "
    r"further explanation\. tags: \[sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, "
    r"classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story\] "
    r"description: (?P<payload>.+)",
    "lamp-3": r"What is the score of the following review on a scale of 1 to 5\? just answer with 1, 2, 3, 4, or 5 "
    r"without further explanation\. review: (?P<payload>.+)",
    "lamp-4": r"Generate a headline for the following article: (?P<payload>.+)",
    "lamp-5": r"Generate a title for the following abstract of a paper: (?P<payload>.+)",
    "own": r"(?P<payload>.+)",
}


def people_of(task_id: str, *, seed: int = 0) -> Personas:
    return make_personas(task_id, people=20, history=15, queries=10, seed=seed)


def asked(personas: Personas) -> list[tuple[str, Query]]:
    return [(user.user_id, query) for user in personas.users for query in user.queries]


def payload(task_id: str, query: Query) -> str:
    match = re.fullmatch(RAW_INPUT[task_id], query.text)
    assert match, query.text
    return match["payload"]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# Reproducible -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(task_id: str, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_personas(tmp_path / name, task_id=task_id, pool=4, targets=3, target_queries=2, seed=seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == (3 if task_id == "own" else 5)
    for name in names:
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again
        assert first != other, name


def test_seed_decides_tastes_too() -> None:
    assert people_of("lamp-2", seed=0).truth != people_of("lamp-2", seed=1).truth


def test_numbers_asked_for_are_kept() -> None:
    personas = make_personas("lamp-2", people=12, history=(3, 6), queries=2, seed=5)
    lengths = {len(user.history) for user in personas.users}
    assert len(personas.users) == 12
    assert lengths <= {3, 4, 5, 6}
    assert len(lengths) > 1
    assert {len(user.queries) for user in personas.users} == {2}


def test_without_queries_there_is_no_score() -> None:
    personas = make_personas("lamp-3", people=2, history=3, queries=0, seed=0)
    assert (personas.best_score, personas.group_score) == ({}, {})


# Exact ceilings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", LABEL_TASKS)
def test_best_accuracy_is_the_share_of_answers_that_follow_from_taste(task_id: str) -> None:
    personas = people_of(task_id)
    hits = [
        query.gold == ideal_answer(task_id, personas.truth[user_id].likes, personas.facts[query.query_id])
        for user_id, query in asked(personas)
    ]
    assert personas.best_score["accuracy"] == pytest.approx(sum(hits) / 200)
    assert 0.88 <= personas.best_score["accuracy"] < 1


def test_best_rating_errors_are_those_of_one_star_slips() -> None:
    personas = people_of("lamp-3")
    slips = [
        abs(
            int(query.gold or "")
            - int(ideal_answer("lamp-3", personas.truth[name].likes, personas.facts[query.query_id]))
        )
        for name, query in asked(personas)
    ]
    assert set(slips) == {0, 1}
    assert personas.best_score == {"mae": pytest.approx(mean(slips)), "rmse": pytest.approx(mean(slips) ** 0.5)}
    assert personas.best_score["mae"] < 0.12


@pytest.mark.parametrize("task_id", TEXT_TASKS)
def test_wording_follows_from_taste_exactly(task_id: str) -> None:
    personas = people_of(task_id)
    for user_id, query in asked(personas):
        assert query.gold == ideal_answer(task_id, personas.truth[user_id].likes, personas.facts[query.query_id])
    assert personas.best_score == {"rouge_1": pytest.approx(1.0), "rouge_l": pytest.approx(1.0)}


def test_noise_is_about_one_answer_in_twenty() -> None:
    personas = make_personas("lamp-2", people=60, history=1, queries=40, seed=0)
    wrong = 1 - personas.best_score["accuracy"]
    assert wrong == pytest.approx(0.05, abs=0.015)  # 2400 answers: three standard errors


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task_id", LABEL_TASKS)
def test_majority_is_below_group_is_below_taste(task_id: str, seed: int) -> None:
    personas = people_of(task_id, seed=seed)
    majority = 0
    for user in personas.users:
        tags = Counter(item.get("tag") for item in user.history)
        guess = tags.most_common(1)[0][0] if task_id == "lamp-2" else "[1]"
        majority += sum(query.gold == guess for query in user.queries)
    best, group = personas.best_score["accuracy"], personas.group_score["accuracy"]
    assert majority / 200 + 0.15 < group < best - 0.05


@pytest.mark.parametrize("seed", range(3))
def test_mean_rating_is_worse_than_group_is_worse_than_taste(seed: int) -> None:
    personas = people_of("lamp-3", seed=seed)
    errors = [
        abs(float(query.gold or "") - mean([float(item.get("score")) for item in user.history]))
        for user in personas.users
        for query in user.queries
    ]
    assert mean(errors) - 0.3 > personas.group_score["mae"] > personas.best_score["mae"] + 0.2


@pytest.mark.parametrize("task_id", TEXT_TASKS)
def test_group_wording_is_close_but_not_exact(task_id: str) -> None:
    assert 0.6 < people_of(task_id).group_score["rouge_1"] < 0.95


# Answers depend on the person -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_one_text_is_answered_differently_by_different_people(task_id: str) -> None:
    personas = people_of(task_id)
    differ = [
        ideal_answer(task_id, personas.truth[a.user_id].likes, facts)
        != ideal_answer(task_id, personas.truth[b.user_id].likes, facts)
        for a, b in combinations(personas.users[:8], 2)
        for facts in list(personas.facts.values())[:60]
    ]
    assert mean(differ) > 0.3


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_groups_have_quirky_members(task_id: str) -> None:
    personas = people_of(task_id)
    assert {taste.group for taste in personas.truth.values()} == set(GROUPS)
    quirky = [taste.likes != group_likes(task_id, taste.group) for taste in personas.truth.values()]
    assert mean(quirky) > 0.4
    if task_id in LAMP_TASKS[:3]:  # groups overlap: neither the same likes nor opposite ones
        assert len({group_likes(task_id, group) for group in GROUPS}) == len(GROUPS)


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_histories_are_set_in_the_groups_places_and_queries_anywhere(task_id: str) -> None:
    personas = make_personas(task_id, people=30, history=12, queries=12, seed=0)

    def own_place(user_id: str, text: str) -> bool:
        return any(place in text for place in PLACES[personas.truth[user_id].group])

    items = [own_place(u.user_id, " ".join(i.fields.values())) for u in personas.users for i in u.history]
    queries = [own_place(user_id, query.text) for user_id, query in asked(personas)]
    assert mean(items) == pytest.approx(0.8, abs=0.07)  # 0.75 of purpose, a fifth of the rest by chance
    assert mean(queries) == pytest.approx(0.2, abs=0.07)


def test_hand_made_tastes_give_the_answers_read_off_the_page() -> None:
    film = {"romance": "a tender first kiss", "action": "nonstop stunts"}
    loves = ("romance", *(tag for tag in TAGS if tag != "romance"))
    assert ideal_answer("lamp-2", loves, film) == "romance"
    assert ideal_answer("lamp-2", TAGS, film) == "action"

    review = {"price": "good", "build": "bad", "looks": "bad"}
    assert ideal_answer("lamp-3", ("price", "build", "speed", "even"), review) == "4"  # 3 + 2 - 1
    assert ideal_answer("lamp-3", ("build", "looks", "speed", "even"), review) == "1"  # 3 - 2 - 1 = 0, clipped
    assert ideal_answer("lamp-3", ("speed", "service", "battery", "kind"), review) == "4"  # 3 + 0 + 1
    assert ideal_answer("lamp-3", ("price", "service", "battery", "strict"), review) == "4"  # 3 + 2 - 1

    pair = {"area": "health", "[1]": "rules", "[2]": "survey"}  # the circle is neural, survey, rules
    assert ideal_answer("lamp-1", ("neural", "rules", "neural", "neural"), pair) == "[1]"
    assert ideal_answer("lamp-1", ("rules", "neural", "rules", "rules"), pair) == "[2]"  # survey is next after neural

    news = {"subject": "tiny cinema", "place": "on a windy pier"}
    assert ideal_answer("lamp-4", ("city", "place"), news) == "TINY CINEMA: the story so far | live on a windy pier"
    paper = {"name": "CEDAR", "method": "tree search", "problem": "bug triage", "place": "below the glacier"}
    assert ideal_answer("lamp-5", ("farm", "plain"), paper) == "Bug triage revisited: lessons learned from tree search"
    request = {"thing": "tent", "day": "Monday", "place": "at a ski lodge"}
    assert ideal_answer("own", ("mountain", "call"), request) == "Yes: tent, Monday. Please call me first."


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-4", "lamp-5", "own"])
def test_facts_are_what_the_text_says(task_id: str) -> None:
    personas = people_of(task_id)
    for _, query in asked(personas)[:50]:
        facts = personas.facts[query.query_id]
        assert all(text in query.text for text in facts.values())
        if task_id == "lamp-2":
            assert query.gold in facts


def test_a_remembered_citation_shows_the_school_that_was_cited() -> None:
    personas = people_of("lamp-1")
    user = personas.users[0]
    likes = personas.truth[user.user_id].likes
    followed = []
    for item in user.history:
        facts = personas.facts[item.item_id]
        school = facts[ideal_answer("lamp-1", likes, facts)]
        followed.append(school_of(item.get("citation")) == school)
    assert mean(followed) > 0.8


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_no_text_occurs_twice_and_pool_and_targets_are_different_people(task_id: str) -> None:
    pool, targets = make_pool_and_targets(task_id, pool=10, targets=10, seed=0)
    assert not pool.truth.keys() & targets.truth.keys()
    users = pool.users + targets.users
    remembered = [item.get(KEY_FIELD[task_id]) for user in users for item in user.history]
    questions = [payload(task_id, query) for user in users for query in user.queries]
    assert len(set(remembered + questions)) == len(remembered) + len(questions)


@pytest.mark.parametrize("task_id", LAMP_TASKS)
def test_lamp_files_have_the_raw_shape(task_id: str, tmp_path: Path) -> None:
    pool, targets = write_personas(tmp_path, task_id=task_id, pool=5, targets=3, target_queries=4, seed=0)
    for name, personas in (("pool", pool), ("target", targets)):
        records = json.loads((tmp_path / f"{name}_questions.json").read_text(encoding="utf-8"))
        outputs = json.loads((tmp_path / f"{name}_outputs.json").read_text(encoding="utf-8"))
        assert outputs["task"] == f"LaMP_{task_id[-1]}"
        assert [record["id"] for record in records] == [gold["id"] for gold in outputs["golds"]]
        assert len(records) == len(asked(personas))
        for record in records:
            assert set(record) == {"id", "user_id", "input", "profile"}
            assert re.fullmatch(RAW_INPUT[task_id], record["input"])
            assert all(set(item) == PROFILE_KEYS[task_id] for item in record["profile"])
        assert tuple(read_lamp(tmp_path / f"{name}_questions.json")) == personas.users


def test_golds_are_labels() -> None:
    labels = {"lamp-1": {"[1]", "[2]"}, "lamp-2": set(TAGS), "lamp-3": {"1", "2", "3", "4", "5"}}
    for task_id, known in labels.items():
        golds = [query.gold for _, query in asked(people_of(task_id))]
        assert set(golds) == known  # every label occurs, so the macro F1 can reach 1


def test_own_rows_read_back_as_the_same_people(tmp_path: Path) -> None:
    _, targets = write_personas(tmp_path, task_id="own", pool=2, targets=3, target_queries=4, seed=0)
    users = read_jsonl_users(tmp_path / "target.jsonl", queries_per_user=4)
    assert [user.user_id for user in users] == [user.user_id for user in targets.users]
    for read, made in zip(users, targets.users, strict=True):
        assert [item.fields for item in read.history] == [item.fields for item in made.history]
        assert [(q.text, q.gold) for q in read.queries] == [(q.text, q.gold) for q in made.queries]


def test_truth_file_holds_seed_scores_and_tastes(tmp_path: Path) -> None:
    _, targets = write_personas(tmp_path, task_id="lamp-2", pool=2, targets=3, seed=9)
    truth = json.loads((tmp_path / "personas.json").read_text(encoding="utf-8"))
    assert (truth["task"], truth["seed"]) == ("lamp-2", 9)
    assert truth["target"]["best_score"] == targets.best_score
    assert truth["target"]["group_score"] == targets.group_score
    assert {name: tuple(person["likes"]) for name, person in truth["target"]["people"].items()} == {
        name: taste.likes for name, taste in targets.truth.items()
    }


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_texts_are_short_and_quote_free(task_id: str) -> None:
    personas = people_of(task_id)
    lengths = [len(" ".join(item.fields.values()).split()) for user in personas.users for item in user.history]
    assert 20 <= mean(lengths) <= 45
    assert max(lengths) <= 60
    assert not any('"' in text or "{" in text for u in personas.users for i in u.history for text in i.fields.values())


# Bad arguments ----------------------------------------------------------------------------------------------------


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"'lamp-7'.*lamp-2.*own"):
        make_personas("lamp-7", people=1, history=1, queries=1, seed=0)
    with pytest.raises(NotFound, match="lamp-2"):
        ideal_answer("lamp-7", (), {})


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="people is 0; it must be 1 or more"):
        make_personas("lamp-2", people=0, history=1, queries=1, seed=0)
    with pytest.raises(ConfigError, match="history is 0"):
        make_personas("lamp-2", people=1, history=0, queries=1, seed=0)
    with pytest.raises(ConfigError, match="history is 5 to 4"):
        make_personas("lamp-2", people=1, history=(5, 4), queries=1, seed=0)
    with pytest.raises(ConfigError, match="queries is -1"):
        make_personas("lamp-2", people=1, history=1, queries=-1, seed=0)
    with pytest.raises(NotFound, match="group"):
        group_likes("lamp-2", "island")


def test_more_texts_than_there_are_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(ConfigError, match="ask for fewer people"):
        make_personas("lamp-1", people=1, history=20_000, queries=0, seed=0)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        write_personas(blocker / "people", task_id="lamp-2", pool=1, targets=1, seed=0)


# Together with the tasks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ALL_TASKS)
def test_the_tasks_read_every_query_and_item(task_id: str) -> None:
    task, personas = get_task(task_id), people_of(task_id)
    shape = SHAPES[task_id]
    assert (shape.labels, shape.metrics) == (task.labels, task.metrics)
    for user in personas.users[:5]:
        examples = query_examples(task, user, history_k=1)
        assert [example.fields[task.input_field] for example in examples] == [payload(task_id, q) for q in user.queries]
        assert len(training_examples(task, user, history_k=1, seed=0).examples) == len(user.history)


def test_citation_training_pairs_show_the_taste() -> None:
    """The wrong option is another citation of the same person, often of the same school: those pairs tell nothing."""
    personas = make_personas("lamp-1", people=20, history=20, queries=0, seed=0)
    told = []
    for user in personas.users:
        likes = personas.truth[user.user_id].likes
        for example in training_examples(get_task("lamp-1"), user, history_k=0, seed=0).examples:
            first, second = (school_of(example.fields[name]) for name in ("option_1", "option_2"))
            if first != second:
                facts = {"area": personas.facts[example.example_id]["area"], "[1]": first, "[2]": second}
                told.append(ideal_answer("lamp-1", likes, facts) == example.answer)
    assert len(told) > 160  # of 400
    assert mean(told) > 0.9


def school_of(title: str) -> str:
    return next(school for school, phrases in SCHOOLS.items() if any(phrase in title for phrase in phrases))
