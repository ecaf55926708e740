"""The classical control: against slow formulas, on invented people whose tastes are known."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mta.baselines.classical import CLASSICAL_ROWS, Classical, classical_fits, fit_classical
from mta.baselines.classical_pairs import make_questions, option_features, own_texts, unit_vectors
from mta.baselines.classical_setup import ClassicalConfig, smallest
from mta.baselines.label_prior import log_prior_ratio
from mta.baselines.linear_models import fit_choice, fit_labels, people_folds
from mta.data.people import rule_for
from mta.data.personas import make_personas
from mta.errors import ConfigError, DataError
from mta.metrics import parse_rating, score
from mta.records import Example, HistoryItem, Prediction, Query, User
from mta.tasks import TASKS, get_task
from mta.tasks.examples import query_examples
from mta.vector_cache import VectorCache
from small_world import ENCODER, Heard

LAMP_1, LAMP_2, LAMP_3 = get_task("lamp-1"), get_task("lamp-2"), get_task("lamp-3")
FAST = ClassicalConfig(
    folds=3, C=(1.0, 10.0), smoothing=(2.0, 5.0), strength=(0.0, 1.0), ridge=(0.3, 3.0), shrinkage=(1.0, 5.0)
)
WORDS = {"comedy": "laughing clown", "action": "car chase", "romance": "wedding kiss", "classic": "black white"}


def film(text: str, tag: str) -> dict[str, str]:
    return {"description": text, "tag": tag}


def review(text: str, score: str) -> dict[str, str]:
    return {"text": text, "score": score}


def paper(title: str, citation: str = "") -> dict[str, str]:
    return {"title": title, "abstract": "", "citation": citation}


def person(user_id: str, *rows: dict[str, str]) -> User:
    return User(user_id, tuple(HistoryItem(str(place), row) for place, row in enumerate(rows)))


def question(gold: str = "comedy", **fields: str) -> Example:
    return Example(example_id="q1", user_id="ann", fields=fields, answer=gold)


def film_pool(people: int = 8, items: int = 6, seed: int = 0) -> list[User]:
    """People with a favourite tag each; a text holds its tag's words, now and then another's."""
    rng = random.Random(seed)
    users = []
    for number in range(people):
        favourite = list(WORDS)[number % len(WORDS)]
        tags = [rng.choice([favourite, favourite, *WORDS]) for _ in range(items)]
        rows = [film(f"{WORDS[rng.choice([tag, tag, *WORDS])]} number {rng.randrange(9)}", tag) for tag in tags]
        users.append(person(f"u{number}", *rows))
    return users


def review_pool(people: int = 8, items: int = 6, seed: int = 0) -> list[User]:
    """People of different severity; a text says how good the thing is."""
    rng = random.Random(seed)
    words = ("awful", "poor", "fair", "good", "superb")
    users = []
    for number in range(people):
        rows = []
        for place in range(items):
            quality = rng.randrange(5)
            stars = min(5, max(1, quality + 1 + (-1 if number % 2 else 1) * rng.randrange(2)))
            rows.append(review(f"{words[quality]} thing {number} {place}", str(stars)))
        users.append(person(f"u{number}", *rows))
    return users


def paper_pool(people: int = 6, items: int = 4) -> list[User]:
    """People who cite papers of the same topic words as their titles."""
    topics = ("parsing trees", "speech sound", "graph kernel", "poem metre", "robot arm", "river fish")
    return [
        person(
            f"u{number}",
            *(
                paper(f"{topics[number]} title {number} {place}", f"{topics[number]} cited {number} {place}")
                for place in range(items)
            ),
        )
        for number in range(people)
    ]


POOLS = {"lamp-1": paper_pool, "lamp-2": film_pool, "lamp-3": review_pool}
ASKED = {
    "lamp-1": question("[1]", title="speech title", option_1="speech sound", option_2="river fish"),
    "lamp-2": question("comedy", description="a laughing clown in a car"),
    "lamp-3": question("4", text="a good thing"),
}


def fitted(task_id: str, config: ClassicalConfig = FAST) -> Classical:
    return fit_classical(get_task(task_id), POOLS[task_id](), encoder=ENCODER, config=config)


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


# what it says -----------------------------------------------------------------------------------------------------


def test_it_learns_the_words_of_a_label_from_everybody() -> None:
    model = fit_classical(LAMP_2, film_pool(12, 12), encoder=ENCODER, config=FAST)
    asked = [question(description=f"{words} tonight") for words in WORDS.values()]
    assert texts(model.answers(person("ann"), asked, personal=False)) == list(WORDS)


def test_the_persons_own_labels_decide_where_the_text_does_not() -> None:
    model = fit_classical(LAMP_2, film_pool(12, 12), encoder=ENCODER, config=replace(FAST, strength=(1.0,)))
    vague = [question(description="an evening at the pictures")]
    for tag in ("romance", "classic"):
        [answer] = model.answers(person("ann", film("x", tag), film("y", tag), film("z", tag)), vague)
        assert answer.text == tag
    assert len({tuple(texts(model.answers(user, vague, personal=False))) for user in film_pool()}) == 1


@pytest.mark.parametrize("task_id", POOLS)
def test_predictions_are_whole(task_id: str) -> None:
    task, example = get_task(task_id), ASKED[task_id]
    model, user = fitted(task_id), POOLS[task_id]()[1]
    for personal in CLASSICAL_ROWS.values():
        [row] = model.answers(user, [example], personal=personal)
        assert (row.query_id, row.user_id, row.gold, row.nll_tokens) == ("q1", "ann", example.answer, 1)
        assert tuple(row.label_scores) == task.labels
        assert sum(map(math.exp, row.label_scores.values())) == pytest.approx(1.0)
        assert row.nll == -row.label_scores[example.answer]
        assert row.label == max(task.labels, key=lambda label: row.label_scores[label])
        assert row.text == row.label or task.kind == "rating"


@pytest.mark.parametrize("task_id", POOLS)
def test_no_examples_and_an_unknown_gold(task_id: str) -> None:
    model = fitted(task_id)
    assert model.answers(person("ann"), []) == []
    [row] = model.answers(person("ann"), [replace(ASKED[task_id], answer="")])
    assert row.nll is None


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-3"])
def test_without_a_history_it_is_the_pools_answer(task_id: str) -> None:
    model = fitted(task_id)
    [own], [pool] = (model.answers(person("ann"), [ASKED[task_id]], personal=personal) for personal in (True, False))
    assert own.text == pool.text
    assert own.label_scores == pytest.approx(pool.label_scores)


@pytest.mark.parametrize("task_id", POOLS)
def test_the_pools_row_does_not_depend_on_the_person(task_id: str) -> None:
    model, pool = fitted(task_id), POOLS[task_id]()
    assert (
        len(
            {
                tuple(p.label_scores.values())
                for user in pool
                for p in model.answers(user, [ASKED[task_id]], personal=False)
            }
        )
        == 1
    )
    assert len({tuple(p.label_scores.values()) for user in pool for p in model.answers(user, [ASKED[task_id]])}) > 1


def test_a_label_nobody_used_keeps_its_smoothed_share() -> None:
    model = fitted("lamp-2")
    items = [item for user in film_pool() for item in user.history]
    [row] = model.answers(person("ann"), [ASKED["lamp-2"]], personal=False)
    assert "dystopia" not in {item.get("tag") for item in items}
    assert row.label_scores["dystopia"] == pytest.approx(math.log(1 / (len(items) + 15)))
    often = person("ann", *(film("x", "dystopia") for _ in range(200)))
    [row] = fitted("lamp-2", replace(FAST, strength=(1.0,))).answers(often, [ASKED["lamp-2"]])
    assert row.text == "dystopia"


# slow formulas ----------------------------------------------------------------------------------------------------


def scaled_vectors(texts: list[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """The pool's vectors as the fit sees them, in loops: centred, and of mean square length 1."""
    vectors = [ENCODER.embed([text])[0].double().tolist() for text in texts]
    size = len(vectors[0])
    centre = [sum(vector[d] for vector in vectors) / len(vectors) for d in range(size)]
    moved = [[vector[d] - centre[d] for d in range(size)] for vector in vectors]
    scale = math.sqrt(sum(value * value for vector in moved for value in vector) / len(vectors))
    return np.array(moved) / scale, np.array(centre), scale


def test_labels_are_bayes_rule_over_a_plain_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    pool = film_pool()
    model = fit_classical(LAMP_2, pool, encoder=ENCODER, config=replace(FAST, strength=(0.75,)))
    rows = [(item.get("description"), item.get("tag")) for user in pool for item in user.history]
    inputs, centre, scale = scaled_vectors([text for text, _ in rows])
    plain = LogisticRegression(C=model.chosen["C"], max_iter=5000, tol=1e-8).fit(inputs, [tag for _, tag in rows])
    query = (ENCODER.embed(["clown in a car"])[0].double().numpy() - centre) / scale
    share = {label: (sum(tag == label for _, tag in rows) + 1) / (len(rows) + 15) for label in LAMP_2.labels}
    seen = dict(zip(plain.classes_.tolist(), plain.predict_proba([query])[0].tolist(), strict=True))
    left = 1 - sum(share[label] for label in LAMP_2.labels if label not in seen)
    of_pool = {label: seen[label] * left if label in seen else share[label] for label in LAMP_2.labels}
    user = person("ann", film("x", "action"), film("y", "action"), film("z", "dystopia"))
    smoothing = model.chosen["smoothing"]
    mine = {label: [i.get("tag") for i in user.history].count(label) for label in LAMP_2.labels}
    mixed = {
        label: of_pool[label] * ((mine[label] + smoothing * share[label]) / (3 + smoothing) / share[label]) ** 0.75
        for label in LAMP_2.labels
    }
    example = [question(description="clown in a car")]
    [alone], [own] = (model.answers(user, example, personal=personal) for personal in (False, True))
    assert alone.label_scores == pytest.approx({k: math.log(v) for k, v in of_pool.items()}, abs=2e-3)
    total = sum(mixed.values())
    assert own.label_scores == pytest.approx({k: math.log(v / total) for k, v in mixed.items()}, abs=2e-3)
    ratio = log_prior_ratio(user, share, LAMP_2, smoothing)  # the same correction as a language model gets
    sums = {label: alone.label_scores[label] + 0.75 * ratio[label] for label in LAMP_2.labels}
    assert own.label == max(sums, key=lambda label: sums[label])


def test_settings_are_chosen_on_people_left_out() -> None:
    """Everything over again in loops: each person by fits without her fold, her prior by her other items."""
    pool = film_pool(7, 5, seed=3)
    pool[0] = replace(pool[0], history=pool[0].history[:2])  # people of different lengths count the same
    model = fit_classical(LAMP_2, pool, encoder=ENCODER, seed=4, config=FAST)
    fold = people_folds(pool, rule=rule_for("lamp-2"), folds=3, seed=4)
    rows = [(user, item) for user in pool for item in user.history]
    inputs, _, _ = scaled_vectors([item.get("description") for _, item in rows])
    labels = np.array([LAMP_2.labels.index(item.get("tag")) for _, item in rows])

    def nll(C: float, smoothing: float, strength: float) -> float:
        total = 0.0
        for user in pool:
            on = [place for place, (other, _) in enumerate(rows) if fold[other.user_id] != fold[user.user_id]]
            counts = [sum(labels[place] == label for place in on) + 1 for label in range(15)]
            share = np.array(counts) / (len(on) + 15)
            fit = fit_labels(inputs[on], labels[on], share, C)
            mine = [place for place, (other, _) in enumerate(rows) if other is user]
            for place in mine:
                scores = fit.log_shares(inputs[[place]])[0].tolist()
                for label in range(15):
                    others = sum(labels[other] == label for other in mine if other != place)
                    own = (others + smoothing * share[label]) / (len(mine) - 1 + smoothing)
                    scores[label] += strength * math.log(own / share[label])
                gold = scores[labels[place]] - math.log(sum(map(math.exp, scores)))
                total -= gold / len(mine) / len(pool)
        return total

    C = min(FAST.C, key=lambda C: nll(C, 1.0, 0.0))
    grid = [(smoothing, strength) for smoothing in FAST.smoothing for strength in FAST.strength]
    smoothing, strength = min(grid, key=lambda pair: nll(C, *pair))
    assert model.chosen == {"C": C, "smoothing": smoothing, "strength": strength}
    assert model.held_out["nll_pool"] == pytest.approx(nll(C, 1.0, 0.0))
    assert model.held_out["nll"] == pytest.approx(nll(C, smoothing, strength))
    assert model.held_out["nll"] < model.held_out["nll_pool"]


def test_ratings_are_ridge_plus_a_shrunken_residual() -> None:
    pool = review_pool()
    model = fit_classical(LAMP_3, pool, encoder=ENCODER, config=FAST)
    rows = [(item.get("text"), float(item.get("score"))) for user in pool for item in user.history]
    inputs, centre, scale = scaled_vectors([text for text, _ in rows])
    golds = np.array([stars for _, stars in rows])
    size = inputs.shape[1]  # the normal equations; centred inputs leave the intercept to the mean
    weights = np.linalg.solve(
        inputs.T @ inputs + model.chosen["ridge"] * np.eye(size), inputs.T @ (golds - golds.mean())
    )

    def plain(text: str) -> float:
        vector = (ENCODER.embed([text])[0].double().numpy() - centre) / scale
        return float(vector @ weights + golds.mean())

    user = person("ann", review("good chair", "1"), review("fair lamp", "2"), review("x", "no number"))
    residuals = [1 - plain("good chair"), 2 - plain("fair lamp")]
    offset = sum(residuals) / (2 + model.chosen["shrinkage"])
    example = [question("4", text="good lamp")]
    [pool_row], [own] = (model.answers(user, example, personal=personal) for personal in (False, True))
    assert float(pool_row.text) == pytest.approx(plain("good lamp"), abs=1e-4)
    assert float(own.text) == pytest.approx(plain("good lamp") + offset, abs=1e-4)
    assert offset < -0.3  # she is severe
    assert score(["mae"], [own.text], ["4"], labels=LAMP_3.labels)["mae"] == pytest.approx(4 - float(own.text))


def test_rating_settings_are_chosen_on_people_left_out() -> None:
    pool = review_pool(7, 5, seed=3)
    model = fit_classical(LAMP_3, pool, encoder=ENCODER, seed=4, config=FAST)
    fold = people_folds(pool, rule=rule_for("lamp-3"), folds=3, seed=4)
    rows = [(user, item) for user in pool for item in user.history]
    inputs, _, _ = scaled_vectors([item.get("text") for _, item in rows])
    golds = np.array([float(item.get("score")) for _, item in rows])

    def mse(ridge: float, shrinkage: float) -> float:
        errors = []
        for user in pool:
            on = [place for place, (other, _) in enumerate(rows) if fold[other.user_id] != fold[user.user_id]]
            mean = inputs[on].mean(axis=0)
            moved = inputs[on] - mean
            inverse = np.linalg.inv(moved.T @ moved + ridge * np.eye(inputs.shape[1]))
            weights = inverse @ moved.T @ (golds[on] - golds[on].mean())
            mine = [place for place, (other, _) in enumerate(rows) if other is user]
            said = {place: float((inputs[place] - mean) @ weights + golds[on].mean()) for place in mine}
            for place in mine:
                others = sum(golds[other] - said[other] for other in mine if other != place)
                answer = said[place] + others / (len(mine) - 1 + shrinkage)
                errors.append((min(5.0, max(1.0, answer)) - golds[place]) ** 2 / len(mine) / len(pool))
        return sum(errors)

    ridge = min(FAST.ridge, key=lambda ridge: mse(ridge, 1e12))
    shrinkage = min(FAST.shrinkage, key=lambda shrinkage: mse(ridge, shrinkage))
    assert (model.chosen["ridge"], model.chosen["shrinkage"]) == (ridge, shrinkage)
    assert model.held_out["rmse_pool"] == pytest.approx(math.sqrt(mse(ridge, 1e12)))
    assert model.held_out["rmse"] == pytest.approx(math.sqrt(mse(ridge, shrinkage)))


def test_ratings_stay_within_the_labels() -> None:
    model = fitted("lamp-3", replace(FAST, shrinkage=(0.001,), ridge=(0.001,)))
    angry = person("ann", *(review(f"superb thing {n}", "1") for n in range(30)))
    happy = person("bob", *(review(f"awful thing {n}", "5") for n in range(30)))
    assert texts(model.answers(angry, [question("1", text="awful")])) == ["1"]
    assert texts(model.answers(happy, [question("5", text="superb")])) == ["5"]
    assert parse_rating(model.answers(angry, [ASKED["lamp-3"]])[0].text) is not None


# a choice between two ---------------------------------------------------------------------------------------------


def test_option_features_by_hand() -> None:
    title, option = np.array([1.0, 0.0]), np.array([0.6, 0.8])
    own = np.array([[0.0, 1.0], [1.0, 0.0], [-0.6, -0.8]])
    assert option_features(title, option, own) == pytest.approx([0.6, 0.8, (0.8 + 0.6 - 1.0) / 3])
    assert option_features(title, option, np.zeros((0,))) == pytest.approx([0.6, 0.0, 0.0])


def test_the_order_of_the_options_does_not_matter() -> None:
    model, user = fitted("lamp-1"), paper_pool()[1]
    one, two = "speech sound again", "river fish again"
    for personal in CLASSICAL_ROWS.values():
        [first] = model.answers(user, [question("[1]", title="speech", option_1=one, option_2=two)], personal=personal)
        [second] = model.answers(user, [question("[2]", title="speech", option_1=two, option_2=one)], personal=personal)
        assert first.label_scores["[1]"] == second.label_scores["[2]"] > math.log(0.5)
        assert (first.text, second.text) == ("[1]", "[2]")


def test_equal_options_are_a_toss_up() -> None:
    [row] = fitted("lamp-1").answers(paper_pool()[0], [question("[2]", title="t", option_1="same", option_2="same")])
    assert row.nll == pytest.approx(math.log(2))


def test_the_history_decides_where_the_title_does_not() -> None:
    pool = [  # titles say nothing; people cite what is like their other papers
        person(f"u{n}", *(paper(f"w{n} {k}{n}", f"v{n} c{k}{n}") for k in range(5))) for n in range(6)
    ]
    words = [f"v{n}" for n in range(6)]
    model = fit_classical(LAMP_1, pool, encoder=ENCODER, config=FAST)
    asked = question("[2]", title="something else", option_1=f"{words[3]} x", option_2=f"{words[2]} x")
    [own] = model.answers(pool[2], [asked])
    [alone] = model.answers(pool[2], [asked], personal=False)
    assert own.text == "[2]"
    assert own.nll is not None
    assert alone.nll is not None
    assert own.nll < alone.nll
    assert model.held_out["nll"] < model.held_out["nll_pool"]


def test_questions_are_made_of_what_others_cite() -> None:
    pool = [
        *paper_pool(),
        person("zoe", paper("a", "P"), paper("b", " p "), paper("c"), paper("", "Q"), paper("d", "R")),
    ]
    made = make_questions(pool, 0)
    cited = {user.user_id: {item.get("citation").strip().lower() for item in user.history} for user in pool}
    for one in made:
        assert one.right.lower() in cited[one.user_id]
        assert one.wrong.lower() not in cited[one.user_id]
        assert any(one.wrong.lower() in theirs for theirs in cited.values())
        assert one.right not in one.own
        assert one.title not in one.own
    zoe = [one for one in made if one.user_id == "zoe"]
    assert [(one.title, one.right) for one in zoe] == [("a", "P"), ("b", "p"), ("d", "R")]
    assert zoe[0].own == ("c", "Q", "d", "R")  # nothing of the other item that cites it
    assert len(made) == 6 * 4 + 3


def test_questions_depend_on_the_seed_and_not_on_order() -> None:
    pool = paper_pool()
    assert make_questions(pool, 0) == make_questions(pool[::-1], 0)
    assert make_questions(pool, 0) != make_questions(pool, 1)


def test_the_choice_is_a_regression_without_intercept() -> None:
    """Newton's method in a loop on the penalised likelihood."""
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(30, 2)) + np.array([0.5, 0.2])
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-differences @ weights))
        gradient = differences.T @ (1 - p) - weights / 3.0
        hessian = (differences * (p * (1 - p))[:, None]).T @ differences + np.eye(2) / 3.0
        weights += np.linalg.solve(hessian, gradient)
    assert fit_choice(differences, 3.0) == pytest.approx(weights, abs=1e-3)
    assert np.isfinite(fit_choice(differences[:1], 3.0)).all()


def test_unit_vectors_and_own_texts() -> None:
    vectors = unit_vectors(["a", "b", "a"], lambda texts: np.array([[3.0, 4.0], [0.0, 0.0]][: len(texts)]))
    assert vectors["a"] == pytest.approx([0.6, 0.8])
    assert vectors["b"] == pytest.approx([0.0, 0.0])
    assert own_texts(person("ann", paper("a", " b "), paper(" ", "c")).history) == ("a", "b", "c")


# what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", POOLS)
def test_the_pools_order_does_not_matter(task_id: str) -> None:
    task, pool = get_task(task_id), POOLS[task_id]()
    shuffled = random.Random(1).sample(pool, len(pool))
    one, other = (fit_classical(task, users, encoder=ENCODER, config=FAST) for users in (pool, shuffled))
    assert (one.chosen, one.held_out) == (other.chosen, other.held_out)
    assert one.answers(pool[0], [ASKED[task_id]]) == other.answers(pool[0], [ASKED[task_id]])


@pytest.mark.parametrize("task_id", POOLS)
def test_queries_play_no_part(task_id: str) -> None:
    task = get_task(task_id)
    users = make_personas(task_id, people=8, history=6, queries=2, seed=0).users
    changed = [replace(user, queries=(Query("x", "unreadable", "no label"),)) for user in users]
    one, other = (fit_classical(task, pool, encoder=ENCODER, config=FAST) for pool in (users[1:], changed[1:]))
    asked = query_examples(task, users[0], history_k=1)
    assert one.answers(users[0], asked) == other.answers(changed[0], asked)


@pytest.mark.parametrize("task_id", POOLS)
def test_queries_together_are_as_one_by_one_and_shown_items_do_not_matter(task_id: str) -> None:
    task = get_task(task_id)
    users = make_personas(task_id, people=8, history=6, queries=3, seed=0).users
    model = fit_classical(task, users[1:], encoder=ENCODER, config=FAST)
    with_two, without = (query_examples(task, users[0], history_k=k) for k in (2, 0))
    together = model.answers(users[0], with_two)
    alone = [row for example in without for row in model.answers(users[0], [example])]
    assert texts(together) == texts(alone)
    for one, other in zip(together, alone, strict=True):
        assert one.label_scores == pytest.approx(other.label_scores)


def test_a_cache_changes_nothing_and_saves_the_vectors(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors.sqlite")
    plain = fitted("lamp-2")
    for _ in range(2):
        model = fit_classical(LAMP_2, film_pool(), encoder=ENCODER, cache=cache, config=FAST)
        assert model.answers(film_pool()[0], [ASKED["lamp-2"]]) == plain.answers(film_pool()[0], [ASKED["lamp-2"]])
    assert (tmp_path / "vectors.sqlite").is_file()


@pytest.mark.parametrize(("task_id", "tries"), [("lamp-1", 2), ("lamp-2", 2), ("lamp-3", 4)])
def test_progress_is_told(task_id: str, tries: int) -> None:
    heard = Heard()
    fit_classical(get_task(task_id), POOLS[task_id](), encoder=ENCODER, config=FAST, progress=heard)
    assert heard.stages == ["pool vectors", "classical fit"]
    assert heard.steps[-tries:] == [("classical fit", done, tries) for done in range(1, tries + 1)]


def test_folds_hold_whole_people() -> None:
    pool = film_pool(9)
    sibling = replace(pool[2], user_id="again")  # the same person under another id
    folds = people_folds([*pool, sibling], rule=rule_for("lamp-2"), folds=4, seed=0)
    assert folds["again"] == folds["u2"]
    assert sorted(set(folds.values())) == [0, 1, 2, 3]
    assert folds == people_folds([sibling, *pool[::-1]], rule=rule_for("lamp-2"), folds=4, seed=0)
    assert folds != people_folds([*pool, sibling], rule=rule_for("lamp-2"), folds=4, seed=1)


def test_people_without_usable_items_are_in_no_fold() -> None:
    idle = [person(f"a{n}", film("x", "nonsense")) for n in range(20)]
    active = film_pool(2)
    for pool in (active, [*idle, *active]):
        model = fit_classical(LAMP_2, pool, encoder=ENCODER, config=FAST)
        assert all(map(math.isfinite, model.held_out.values()))


def test_ties_go_to_the_smaller_setting() -> None:
    assert smallest({3.0: 1.0, 1.0: 1.0, 2.0: 2.0}) == 1.0
    assert smallest({(2.0, 0.0): 1.0, (1.0, 0.5): 1.0}) == (1.0, 0.5)


# what cannot be ---------------------------------------------------------------------------------------------------


def test_which_tasks_it_fits() -> None:
    assert {task_id for task_id in TASKS if classical_fits(get_task(task_id))} == {"lamp-1", "lamp-2", "lamp-3"}
    with pytest.raises(ConfigError, match=r"lamp-4.*free text"):
        fit_classical(get_task("lamp-4"), [], encoder=ENCODER)


@pytest.mark.parametrize(
    ("task_id", "pool", "said"),
    [
        ("lamp-2", [], r"0 history items.*no usable label.*tag"),
        ("lamp-2", [person("a", film("x", "nonsense"))], r"no usable label"),
        ("lamp-2", [person("a", film("x", "comedy")), person("b", film("y", "comedy"))], r"only the label 'comedy'"),
        ("lamp-2", [person("a", film("x", "comedy"), film("y", "action"))], r"1 person.*at least 2 people"),
        ("lamp-2", [person("a", film("x", "comedy")), person("a", film("y", "action"))], r"'a' more than once"),
        ("lamp-2", [person("a", review("x", "5"))], r"no field 'description'"),
        ("lamp-3", [person("a", review("x", "5")), person("b", review("y", "5"))], r"only the label '5'.*score"),
        ("lamp-1", [person("a", paper("x")), person("b", paper("y"))], r"none of the 2 items.*citation"),
        ("lamp-1", [person("a", paper("x", "P"), paper("y", "Q"))], r"none of the 2 items.*different people"),
    ],
)
def test_a_pool_that_cannot_be_fitted(task_id: str, pool: list[User], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit_classical(get_task(task_id), pool, encoder=ENCODER, config=FAST)


def test_a_damaged_example_or_history_is_refused() -> None:
    with pytest.raises(DataError, match="description"):
        fitted("lamp-2").answers(person("ann"), [question(text="x")])
    with pytest.raises(DataError, match="option_2"):
        fitted("lamp-1").answers(person("ann"), [question(title="x", option_1="y")])
    with pytest.raises(DataError, match=r"'ann'.*tag"):
        fitted("lamp-2").answers(person("ann", {"description": "x"}), [ASKED["lamp-2"]])


@pytest.mark.parametrize(
    "change",
    [
        {"folds": 1},
        {"C": ()},
        {"C": (0.0,)},
        {"smoothing": (0.0,)},
        {"strength": (-1.0,)},
        {"ridge": (math.inf,)},
        {"shrinkage": (math.nan,)},
    ],
)
def test_settings_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(FAST, **change)  # type: ignore[arg-type]
