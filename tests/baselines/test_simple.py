"""Controls without a model, checked against answers read off by eye."""

from __future__ import annotations

import pytest

from mta.baselines.simple import CONTROLS, controls_for, default_answer, lead, majority, nearest
from mta.data.personas import make_personas
from mta.errors import ConfigError, DataError
from mta.metrics import score
from mta.records import Example, HistoryItem, Prediction, User
from mta.tasks import get_task
from mta.tasks.examples import query_examples


def person(*rows: dict[str, str]) -> User:
    return User("ann", tuple(HistoryItem(str(place), row) for place, row in enumerate(rows)))


def question(gold: str = "gold", **fields: str) -> Example:
    return Example(example_id="q1", user_id="ann", fields=fields, answer=gold)


def film(text: str, tag: str) -> dict[str, str]:
    return {"description": text, "tag": tag}


def review(text: str, stars: str) -> dict[str, str]:
    return {"text": text, "score": stars}


def answers(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


# majority ---------------------------------------------------------------------------------------------------------


def test_majority_is_the_most_frequent_tag_for_every_query() -> None:
    user = person(film("a", "comedy"), film("b", "action"), film("c", "comedy"))
    examples = [question(description="x"), question(description="y")]
    assert answers(majority(get_task("lamp-2"), user, examples)) == ["comedy", "comedy"]


def test_majority_tie_goes_to_the_tag_that_stands_last() -> None:
    rows = [film("a", "comedy"), film("b", "action"), film("c", "action"), film("d", "comedy"), film("e", "classic")]
    assert answers(majority(get_task("lamp-2"), person(*rows), [question(description="x")])) == ["comedy"]
    assert answers(majority(get_task("lamp-2"), person(*rows[:2]), [question(description="x")])) == ["action"]


def test_majority_counts_only_labels() -> None:
    user = person(film("a", "not a tag"), film("b", "not a tag"), film("c", "romance"), film("d", " "))
    assert answers(majority(get_task("lamp-2"), user, [question(description="x")])) == ["romance"]


def test_majority_of_ratings_is_the_mean_not_rounded() -> None:
    user = person(review("a", "5"), review("b", "4"), review("c", "4"), review("d", "x"))
    [prediction] = majority(get_task("lamp-3"), user, [question("5", text="new")])
    assert float(prediction.text) == pytest.approx(13 / 3, abs=1e-8)
    mae = score(["mae"], [prediction.text], ["5"], labels=get_task("lamp-3").labels)["mae"]
    assert mae == pytest.approx(2 / 3, abs=1e-8)  # it was read as a number, not as something unreadable


def test_whole_mean_is_written_plainly() -> None:
    user = person(review("a", "5"), review("b", "3.0"))
    assert answers(majority(get_task("lamp-3"), user, [question(text="new")])) == ["4"]


def test_citation_majority_is_always_the_first_option() -> None:
    user = person({"title": "t", "citation": "[2]"[1:2]}, {"title": "u", "citation": "A paper"})
    assert answers(majority(get_task("lamp-1"), user, [question(title="t", option_1="a", option_2="b")])) == ["[1]"]


def test_majority_of_free_text_is_refused_with_the_controls_that_work() -> None:
    with pytest.raises(ConfigError, match=r"lamp-4.*nearest, lead"):
        majority(get_task("lamp-4"), person({"text": "a", "title": "b"}), [question(text="x")])


# nearest ----------------------------------------------------------------------------------------------------------


def test_nearest_takes_the_answer_of_the_most_similar_item() -> None:
    user = person(film("robots on mars", "sci-fi"), film("a wedding in paris", "romance"))
    examples = [question(description="another wedding"), question(description="robots again")]
    assert answers(nearest(get_task("lamp-2"), user, examples)) == ["romance", "sci-fi"]


def test_nearest_passes_over_items_without_a_usable_answer() -> None:
    user = person(film("a wedding", "no such tag"), film("robots", "sci-fi"))
    assert answers(nearest(get_task("lamp-2"), user, [question(description="a wedding")])) == ["sci-fi"]
    user = person({"text": "storm at sea", "title": " "}, {"text": "new bakery", "title": "Fresh bread"})
    assert answers(nearest(get_task("lamp-4"), user, [question(text="storm")])) == ["Fresh bread"]


def test_nearest_rating_and_title() -> None:
    user = person(review("bad lamp", "1.0"), review("good chair", "5"))
    assert answers(nearest(get_task("lamp-3"), user, [question(text="a lamp")])) == ["1"]
    user = person({"abstract": "parsing trees", "title": "On trees"}, {"abstract": "speech", "title": "On speech"})
    assert answers(nearest(get_task("lamp-5"), user, [question(abstract="speech tools")])) == ["On speech"]


def test_nearest_citation_is_the_option_whose_words_the_history_knows() -> None:
    user = person(
        {"title": "Parsing of trees", "citation": "Kernels over graphs"},
        {"title": "Graphs again", "abstract": "speech"},
    )
    speech, graphs = "Speech for everyone", "Kernels over graphs revisited"
    task = get_task("lamp-1")
    assert answers(nearest(task, user, [question(title="t", option_1=speech, option_2=graphs)])) == ["[2]"]
    assert answers(nearest(task, user, [question(title="t", option_1=graphs, option_2=speech)])) == ["[1]"]
    assert answers(nearest(task, user, [question(title="t", option_1="x", option_2="y")])) == ["[1]"]  # a tie


def test_nearest_does_not_depend_on_what_the_prompt_shows() -> None:
    task = get_task("lamp-2")
    user = make_personas("lamp-2", people=1, history=12, queries=6, seed=0).users[0]
    without, with_two = (nearest(task, user, query_examples(task, user, history_k=k)) for k in (0, 2))
    assert without == with_two
    shown = [example.history[0].get("tag") for example in query_examples(task, user, history_k=1)]
    assert answers(without) == shown  # and it is the item the prompt would show first


# lead -------------------------------------------------------------------------------------------------------------


def test_lead_is_the_first_twelve_words() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert answers(lead(get_task("lamp-4"), person(), [question(text=text)])) == [text.removesuffix(" thirteen")]
    assert answers(lead(get_task("lamp-5"), person(), [question(abstract="just three words")])) == ["just three words"]


def test_lead_of_a_label_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lamp-3.*majority, nearest"):
        lead(get_task("lamp-3"), person(), [question(text="x")])


def test_a_missing_field_is_a_data_error() -> None:
    with pytest.raises(DataError, match="text"):
        lead(get_task("lamp-4"), person(), [question(abstract="x")])
    with pytest.raises(DataError, match="option_1"):
        nearest(get_task("lamp-1"), person(), [question(title="x")])


# all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_id", "wanted"),
    [("lamp-1", "[1]"), ("lamp-2", "sci-fi"), ("lamp-3", "3"), ("lamp-4", ""), ("lamp-5", ""), ("own", "")],
)
def test_empty_history_gives_the_default(task_id: str, wanted: str) -> None:
    task = get_task(task_id)
    example = question(**{task.input_field: "x"}, option_1="a", option_2="b")
    assert default_answer(task) == wanted
    assert answers(nearest(task, person(), [example])) == [wanted]
    if task.kind != "text":
        assert answers(majority(task, person(), [example])) == [wanted]


@pytest.mark.parametrize("task_id", ["lamp-1", "lamp-2", "lamp-3", "lamp-4", "lamp-5", "own"])
def test_predictions_keep_ids_golds_and_order_and_claim_no_likelihood(task_id: str) -> None:
    task = get_task(task_id)
    user = make_personas(task_id, people=1, history=5, queries=3, seed=1).users[0]
    examples = query_examples(task, user, history_k=1)
    for control in controls_for(task).values():
        predictions = control(task, user, examples)
        assert [p.query_id for p in predictions] == [query.query_id for query in user.queries]
        assert [p.gold for p in predictions] == [query.gold for query in user.queries]
        assert all((p.user_id, p.nll, p.label) == (user.user_id, None, None) for p in predictions)
        assert control(task, user, []) == []


def test_which_controls_apply() -> None:
    assert list(CONTROLS) == ["majority", "nearest", "lead"]
    assert list(controls_for(get_task("lamp-2"))) == ["majority", "nearest"]
    assert list(controls_for(get_task("lamp-3"))) == ["majority", "nearest"]
    assert list(controls_for(get_task("own"))) == ["nearest", "lead"]
