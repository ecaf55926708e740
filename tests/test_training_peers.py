"""The peers of the benchmarks train what the engine trains, and unequal work is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
import torch

from measuring import command, rows_of, take_turns
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, TrainConfig
from mta.lora.adapter import distance, scale
from mta.packing import TokenRow
from mta.training_plan import TrainJob
from train import ENGINE, best_of, require_equal, run_engine
from training_peers import FORMS, HfTrainer, PeftLoop, rounds, trained_tokens

CONFIG = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=2, batch_size=4, target_modules=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base_model("tiny-random")


def make_jobs(users: int = 2, items: int = 6) -> list[TrainJob]:
    generator = torch.Generator().manual_seed(0)

    def row() -> TokenRow:
        length, answer = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((5, 30), (1, 4)))
        tokens = torch.randint(3, 250, (length + answer,), generator=generator).tolist()
        return TokenRow(tuple(tokens[:length]), tuple(tokens[length:]))

    return [TrainJob(f"user {n}", tuple(row() for _ in range(items)), CONFIG) for n in range(users)]


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_of_the_loop_gives_the_engine_s_adapters(base: BaseModel, kind: str) -> None:
    jobs = make_jobs()
    ours = run_engine(base, jobs, EngineConfig(slots=2))
    before = base.model.config._attn_implementation
    with closing(PeftLoop(base, CONFIG, kind=kind)) as loop:
        theirs = loop(jobs)
    assert base.model.config._attn_implementation == before
    assert {name: distance(ours[name], theirs[name])[0] for name in ours} == pytest.approx(
        dict.fromkeys(ours, 0), abs=1e-4
    )


def test_the_trainer_gives_the_engine_s_adapters(base: BaseModel) -> None:
    config = replace(CONFIG, epochs=1)  # it goes over its rows once
    jobs = [replace(job, config=config) for job in make_jobs()]
    ours = run_engine(base, jobs, EngineConfig(slots=2))
    with closing(HfTrainer(base, config)) as trainer:
        theirs = trainer(jobs)
    assert all(distance(ours[name], theirs[name])[0] < 1e-4 for name in ours)


def test_unequal_work_is_refused(base: BaseModel) -> None:
    jobs = make_jobs()
    ours = run_engine(base, jobs, EngineConfig(slots=2))
    found = require_equal(base, jobs, {ENGINE: ours, "same": ours})
    assert found["losses apart"] == found["deltas apart"] == 0
    assert found["losses moved"] > 0
    for name, wrong in (("untrained", 0.0), ("other", -1.0), ("nearly", 0.9)):
        other = {job: scale(adapter, wrong) for job, adapter in ours.items()}
        with pytest.raises(SystemExit, match="not comparable"):
            require_equal(base, jobs, {ENGINE: ours, name: other})


def test_rounds_are_those_of_the_engine(base: BaseModel) -> None:
    jobs = make_jobs(users=5)
    work = list(rounds(jobs, slots=2))
    assert [sorted({name for name, _ in rows}) for rows in work[:4]] == [["user 0", "user 1"]] * 4
    assert sum(len(row) for rows in work for _, row in rows) == trained_tokens(jobs)
    assert len(work) == 3 * 4  # two users at a time, four updates each


def test_the_best_way_is_chosen_turn_by_turn() -> None:
    times = {"one": [1.0, 5.0], "two": [3.0, 2.0], "other": [0.1, 0.1]}
    assert best_of(times, ("one", "two", "not measured")) == [1.0, 2.0]
    assert rows_of(times, units=10, unit="tokens")["two"] == {
        "median_s": 2.5, "min_s": 2.0, "max_s": 3.0, "tokens_per_s": 4.0,
    }  # fmt: skip


def test_contenders_beaten_twice_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], Counter[str]()
    monkeypatch.setattr("measuring.product_seconds", lambda: 1.0)
    monkeypatch.setattr("measuring.time.perf_counter", lambda: now[0])

    def taking(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            ran[name] += 1
            now[0] += seconds

        return work

    took = {"engine": 0.1, "good": 0.5, "nearly": 0.6, "beaten": 0.7, "slow, no contender": 0.9}
    ways = {name: taking(name, seconds) for name, seconds in took.items()}
    times = take_turns(ways, repeats=3, contenders=("good", "nearly", "beaten"))
    assert ran == {"engine": 4, "good": 4, "nearly": 4, "beaten": 2, "slow, no contender": 4}
    assert list(times) == ["engine", "good", "nearly", "slow, no contender"]
    assert times["nearly"] == pytest.approx([0.6] * 3)
    assert times.record()["given up, s"] == {"beaten": pytest.approx([0.7, 0.7])}
    assert times.record()["seconds"]["good"] == pytest.approx([0.5] * 3)


def test_a_way_that_is_slow_only_to_warm_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measuring.product_seconds", lambda: 1.0)
    monkeypatch.setattr("measuring.time.perf_counter", lambda: now[0])
    now, slow = [0.0], iter([9.0, 1.0, 1.0])

    def late() -> None:
        now[0] += next(slow)

    def steady() -> None:
        now[0] += 1.0

    assert list(take_turns({"late": late, "steady": steady}, repeats=2, contenders=("late", "steady"))) == [
        "late", "steady",
    ]  # fmt: skip


def test_every_turn_begins_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measuring.product_seconds", lambda: 1.0)
    order: list[str] = []
    take_turns({name: partial(order.append, name) for name in "abc"}, repeats=3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


def test_the_command_is_told_without_places() -> None:
    words = ["/somewhere/benchmarks/train.py", "--data", "/here", "--case", "lamp-2", "--out=/there", "--anyway"]
    assert command(words) == "python benchmarks/train.py --data DATA --case lamp-2 --anyway"


def test_turns_in_which_the_machine_changes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    products = iter([1.0, 1.5, 1.5, 1.55, 1.6, 1.0, 1.0, 1.05])  # before and after each turn
    monkeypatch.setattr("measuring.product_seconds", lambda: next(products))
    ran = Counter[str]()
    times = take_turns({"one": lambda: ran.update(["one"])}, repeats=2)
    assert ran["one"] == 1 + 4  # to warm up, two turns lost, two good ones
    assert len(times["one"]) == 2
    assert list(times.turns) == [2, 4]
    assert times.moved == 5.0


def test_the_steadiest_turns_count_on_a_machine_that_never_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    products = iter([1.0, 1.5, 1.0, 0.8, 1.0, 1.3, 1.0, 2.0])
    monkeypatch.setattr("measuring.product_seconds", lambda: next(products))
    times = take_turns({"one": lambda: None}, repeats=2)
    assert list(times.turns) == [2, 3]
    assert times.moved == 30.0
