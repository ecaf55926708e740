"""What a bank is foretold to take: against the bank that is then built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.adapter_files import load_adapter
from mta.bank_building import build_bank
from mta.bank_costs import BankCosts, bank_costs
from mta.bank_plan import POPULATION_JOB, BankPlan, plan_bank
from mta.base_model import load_base_shape
from mta.config import BankConfig
from mta.errors import DataError
from mta.memory import training_memory
from mta.records import HistoryItem, User
from small_world import BANK, ENCODER, ENCODERS, ENGINE, OWN, TRAIN, small_pool

SHAPE = load_base_shape("tiny-random", dtype="float32")
BENEATH = replace(BANK, population_beneath=True, population_train=replace(TRAIN, rank=5, epochs=1))


def pool() -> list[User]:
    """Six people; of one who is no anchor, an item is longer than any of the anchors'."""
    first, *others = small_pool()
    long = HistoryItem("long", {"input": "garden " * 40, "output": "g"})
    return [replace(first, history=(*first.history[:-1], long)), *others]


def planned(config: BankConfig) -> BankPlan:
    return plan_bank(pool(), OWN, SHAPE.tokens, config=config, encoder=ENCODER)


def foretold(config: BankConfig) -> BankCosts:
    return bank_costs(SHAPE, planned(config), engine=ENGINE)


@pytest.mark.parametrize("config", [BANK, BENEATH], ids=["anchors", "population beneath"])
def test_examples_updates_and_bytes_are_those_of_the_bank_that_is_built(config: BankConfig, tmp_path: Path) -> None:
    told, base = foretold(config), tiny_base(torch.float32)
    bank = build_bank(
        pool(), OWN, base, tmp_path / "bank", config=config, encoders=ENCODERS, engine=ENGINE, work=tmp_path / "work"
    )
    found = [load_adapter(path, base=base) for path in (tmp_path / "work").glob("*/*.safetensors")]
    assert told.anchors == len(bank.anchors) == len(found) - (config is BENEATH)
    assert told.updates == sum(note["updates"] for _, note in found)
    assert told.file_bytes == sum(4 * adapter.parameters for adapter, _ in found)
    everybody = sum(len(user.history) for user in pool()) if config is BENEATH else 0
    assert told.examples == sum(anchor.examples for anchor in bank.anchors) + everybody


def test_everybodys_rows_count_and_judges_do_not() -> None:
    assert foretold(BENEATH).longest_row > foretold(BANK).longest_row
    asked = replace(BENEATH, judges=2)
    with_judges = plan_bank(
        [replace(user, queries=(replace(user.queries[0], gold="x"),)) for user in pool()],
        OWN, SHAPE.tokens, config=asked, encoder=ENCODER,
    )  # fmt: skip
    assert len(with_judges.pool) == 4
    rows = sum(len(user.history) for user in with_judges.pool)
    job = with_judges.population_job(SHAPE.tokens)
    assert (len(job.rows), job.job_id, job.config) == (rows, POPULATION_JOB, BENEATH.population_train)


@pytest.mark.parametrize(
    ("people", "larger"), [(small_pool(), "anchors"), (pool(), "population")], ids=["anchors", "population"]
)
def test_the_larger_of_the_two_trainings_is_the_peak(people: list[User], larger: str) -> None:
    config = replace(BENEATH, population_train=replace(TRAIN, rank=1, max_items=1))
    plan = plan_bank(people, OWN, SHAPE.tokens, config=config, encoder=ENCODER)
    told = bank_costs(SHAPE, plan, engine=ENGINE)
    population = training_memory(SHAPE, [plan.population_job(SHAPE.tokens)], engine=ENGINE)
    assert (told.memory == population) == (larger == "population")
    assert told.memory.total >= population.total


def test_what_lies_beneath_takes_room_in_the_anchors_slots() -> None:
    config = replace(BENEATH, population_train=replace(TRAIN, rank=5, max_items=1))
    found = [
        bank_costs(SHAPE, plan_bank(small_pool(), OWN, SHAPE.tokens, config=one, encoder=ENCODER), engine=ENGINE)
        for one in (BANK, config)
    ]
    assert found[0].memory.slots < found[1].memory.slots


def test_a_population_without_an_example_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 0 pool users has an example"):
        replace(planned(BENEATH), pool=()).population_job(SHAPE.tokens)
