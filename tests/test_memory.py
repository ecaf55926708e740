"""Memory of a training, foretold: against what the same training allocates, and against what a process holds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from helpers import random_rows, tiny_base
from mta.base_model import BaseModel, load_base_shape
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.errors import ModelError
from mta.forward import answer_nll
from mta.lora.adapter import AdapterSum, Recipe
from mta.lora.attach import attached
from mta.memory import _Allocations, fit_passes, largest_pack, rough_bytes, training_memory
from mta.packing import TokenRow, pack_rows
from mta.training import train
from mta.training_plan import TrainJob

CONFIG = TrainConfig(rank=3, alpha=6.0, target_modules=ALL_LINEAR)


def jobs(count: int = 3, *, frozen_rank: int = 0) -> list[TrainJob]:
    beneath = Recipe("planned", frozen_rank, lambda: AdapterSum(())) if frozen_rank else None
    return [TrainJob(f"user {n}", random_rows(n, 5), CONFIG, frozen=beneath) for n in range(count)]


def real_pass(base: BaseModel, rows: list[TokenRow]) -> int:
    """Bytes that one pass of a real model allocates at its peak."""
    with _Allocations() as counted:
        stack = jobs()[0].kind.make(
            jobs(), base.shapes(ALL_LINEAR), slots=2, like=torch.empty(0), compute_dtype=base.dtype
        )
        before = counted.now
        pack = pack_rows(rows, device="cpu")
        stack.route([place % 2 for place in range(len(rows))], pack.lengths, pack.people)
        with attached(base.model, stack):
            answer_nll(base, pack).sum().backward()
        return counted.peak - before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_without_values_allocates_what_a_real_one_does(dtype: str) -> None:
    shape, base = load_base_shape("tiny-random", dtype=dtype), tiny_base(getattr(torch, dtype))
    engine = EngineConfig(slots=2, tokens_per_batch=120)
    rows = largest_pack([row for job in jobs() for row in job.rows], engine)
    found = training_memory(shape, jobs(), engine=engine)
    assert found.tokens == sum(len(row) - 1 for row in rows)
    assert found.largest_pass == pytest.approx(real_pass(base, rows), rel=0.01)
    assert found.weights == sum(one.numel() * one.element_size() for one in base.model.parameters())


def test_slots_hold_values_gradients_moments_and_what_lies_beneath() -> None:
    shape = load_base_shape("tiny-random", dtype="float32")
    sizes = [d_in + d_out for d_out, d_in in shape.shapes(ALL_LINEAR).values()]
    for count, frozen in [(1, 0), (3, 0), (3, 5)]:
        found = training_memory(shape, jobs(count, frozen_rank=frozen), engine=EngineConfig(slots=2))
        assert found.slots == min(count, 2) * sum(sizes) * 4 * (4 * CONFIG.rank + frozen)
    assert found.holes == round(0.1 * (found.weights + found.slots + found.largest_pass))
    assert found.total == found.weights + found.slots + found.largest_pass + found.holes


def test_more_tokens_in_a_pass_take_more_memory_and_the_longest_row_is_the_least() -> None:
    shape = load_base_shape("tiny-random", dtype="float32")
    rows = tuple(TokenRow(tuple(range(3, 3 + n)), (1, 2)) for n in (10, 80, 30, 50, 40, 60))
    long = [replace(jobs(1)[0], rows=rows)]
    found = [training_memory(shape, long, engine=EngineConfig(tokens_per_batch=budget)) for budget in (1, 150, 400)]
    assert [one.tokens for one in found] == [81, 142, 276]
    assert found[0].largest_pass < found[1].largest_pass < found[2].largest_pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [0, 20])
def test_the_rough_bound_is_above_what_is_foretold(dtype: str, frozen: int) -> None:
    shape = load_base_shape("tiny-random", dtype=dtype)
    for tokens in (1, 100, 10_000):
        engine = EngineConfig(slots=2, tokens_per_batch=tokens)
        told = training_memory(shape, jobs(frozen_rank=frozen), engine=engine)
        assert told.slots + told.largest_pass < rough_bytes(shape, jobs(frozen_rank=frozen), engine)


def test_passes_are_made_as_small_as_the_memory_asks_for(monkeypatch, caplog) -> None:
    base, engine = tiny_base(torch.float32), EngineConfig(slots=2, tokens_per_batch=400)
    assert fit_passes(base, jobs(), engine) is engine, "this machine has room for a tiny model"
    told = training_memory(load_base_shape("tiny-random", dtype="float32"), jobs(), engine=engine)
    monkeypatch.setattr("mta.memory.free_bytes", lambda device: int(0.8 * (told.slots + told.largest_pass)))
    fitted = fit_passes(base, jobs(), engine)
    assert fitted == replace(engine, tokens_per_batch=fitted.tokens_per_batch)
    assert fitted.tokens_per_batch in (200, 100, 50)
    assert "tokens in a pass instead of 400" in caplog.text
    shrunk = {done.job_id: done.tensors for done in train(base, jobs(), engine=engine)}
    monkeypatch.undo()
    by_hand = {done.job_id: done.tensors for done in train(base, jobs(), engine=fitted)}
    whole = {done.job_id: done.tensors for done in train(base, jobs(), engine=engine)}
    for name in whole:
        for key, value in whole[name].items():
            assert torch.equal(shrunk[name][key], by_hand[name][key]), "training asks for itself"
            assert float((shrunk[name][key] - value).abs().max()) < 1e-5, "smaller passes, same result"


def test_models_with_other_layer_names_are_bounded_too() -> None:
    base = tiny_base(torch.float32)
    one = [replace(jobs(1)[0], config=replace(CONFIG, target_modules=("q_proj",)))]
    before = rough_bytes(base, one, EngineConfig())
    for layer in base.model.model.layers:
        layer.mlp.other_name = layer.mlp.gate_proj
        del layer.mlp.gate_proj
    assert rough_bytes(base, one, EngineConfig()) == before


def test_a_row_that_would_not_fit_is_refused_before_anything_is_trained(monkeypatch) -> None:
    monkeypatch.setattr("mta.memory.free_bytes", lambda device: 50_000)
    longest = max(len(row) for job in jobs() for row in job.rows)
    with pytest.raises(ModelError, match=rf"MiB for 2 adapters and .* one row of {longest} tokens; 0.0 MiB are free"):
        list(train(tiny_base(torch.float32), jobs(), engine=EngineConfig(slots=2)))


MEASURED = """
import resource, sys
import torch
from mta.base_model import load_base_model, load_base_shape
from mta.config import EngineConfig, TrainConfig
from mta.memory import training_memory
from mta.packing import TokenRow
from mta.memory_at_hand import keep_freed_memory, rss_bytes
from mta.training import train
from mta.training_plan import TrainJob

keep_freed_memory()
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
def row():
    length = int(torch.randint(150, 300, (), generator=draw))
    return TokenRow(tuple(torch.randint(100, 9000, (length,), generator=draw).tolist()), (5, 6, 7))
config = TrainConfig(epochs=2, batch_size=4)
jobs = [TrainJob(f"user {n}", tuple(row() for _ in range(8)), config) for n in range(4)]
engine = EngineConfig(slots=4, tokens_per_batch=1024)
told = training_memory(load_base_shape("smollm2-135m", dtype=sys.argv[1]), jobs, engine=engine).total + rss_bytes()
base = load_base_model("smollm2-135m", dtype=sys.argv[1])
for _ in train(base, jobs, engine=engine):
    pass
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_process_holds_what_was_foretold(dtype: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED, dtype], capture_output=True, text=True, check=True)
    told, held = map(int, done.stdout.split())
    assert told == pytest.approx(held, rel=0.2)
