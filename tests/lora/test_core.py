"""Changes inside a composition: against the model with whole weights and torch's AdamW; alone and in company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import random_adapter, random_rows, tiny_base
from mta.base_model import BaseModel
from mta.compact import kind_of, own_rank
from mta.config import ALL_LINEAR, OWN_FORMS, BankConfig, EngineConfig, TrainConfig
from mta.errors import AdapterError, ConfigError
from mta.generation import Request, score_answers
from mta.lora.adapter import AdapterSum, Recipe
from mta.lora.core import own_part
from mta.lora.stacked import initial_A
from mta.training import train
from mta.training_plan import TrainJob, learning_rate, update_examples
from mta.training_store import train_and_store
from slow_peft import peft_loss

COMPACT = [form for form in OWN_FORMS if form != "lora"]
ENGINE = EngineConfig(slots=2, tokens_per_batch=120)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def config(form: str) -> TrainConfig:
    return TrainConfig(
        rank=2, alpha=3.0, form=form, lr=0.05, epochs=2, batch_size=2, weight_decay=0.01, target_modules=ALL_LINEAR
    )


def composed(base: BaseModel, user: int) -> AdapterSum:
    """Two anchors, or three, of different ranks, one of them on fewer layers than are trained."""
    terms = [
        (0.6, random_adapter(base, ALL_LINEAR, seed=user, rank=2)),
        (0.3, random_adapter(base, ("q_proj", "v_proj"), seed=user + 50, rank=3)),
        (1.0, random_adapter(base, ("down_proj",), seed=user + 90, rank=1)),
    ]
    return AdapterSum(tuple(terms[: 2 + user % 2]))


def job(base: BaseModel, form: str, user: int) -> TrainJob:
    frozen = composed(base, user)
    beneath = Recipe(f"drawn {user}", frozen.rank, lambda: frozen)
    asked = config(form)
    return TrainJob(f"user {user}", random_rows(user, 3 + user), asked, frozen=beneath, kind=kind_of(asked))


def slow_deltas(base: BaseModel, one: TrainJob) -> dict[str, Tensor]:
    """Train with autograd through whole weight matrices; return what each layer's weight has become."""
    assert one.frozen is not None
    asked, frozen = one.config, one.frozen.parts()
    values: dict[str, dict[str, Tensor]] = {}
    for name, (d_out, d_in) in base.shapes(asked.target_modules).items():
        rank = sum(f.rank for _, f in frozen.modules.get(name, ()))
        inside = (rank, rank) if asked.form.startswith("core") else (len(frozen.terms),)
        values[name] = {"C": torch.zeros(inside, dtype=torch.float64)}
        if asked.form.endswith("lora"):
            A = initial_A((asked.rank, d_in), seed=asked.seed, key=one.job_id, module=name).double()
            values[name] |= {"A": A, "B": torch.zeros(d_out, asked.rank, dtype=torch.float64)}
    leaves = [value.requires_grad_() for layer in values.values() for value in layer.values()]

    def delta(name: str) -> Tensor:
        d_out, d_in = base.shapes(asked.target_modules)[name]
        total, C = torch.zeros(d_out, d_in, dtype=torch.float64), values[name]["C"]
        parts = [(k, w, a.modules[name]) for k, (w, a) in enumerate(frozen.terms) if name in a.modules]
        if asked.form.startswith("core") and parts:
            A, B = torch.cat([f.A for _, _, f in parts]), torch.cat([w * f.B for _, w, f in parts], dim=1)
            total = total + B @ (torch.eye(len(C), dtype=torch.float64) + C) @ A
        elif parts:
            total = total + sum((1 + C[k]) * w * (f.B @ f.A) for k, w, f in parts)
        if "A" in values[name]:
            total = total + asked.alpha / asked.rank * values[name]["B"] @ values[name]["A"]
        return total

    optimizer = torch.optim.AdamW(leaves, lr=1.0, betas=(0.9, 0.999), eps=asked.eps, weight_decay=asked.weight_decay)
    for step in range(one.total):
        optimizer.param_groups[0]["lr"] = learning_rate(asked, step=step, total=one.total)
        optimizer.zero_grad()
        rows = [one.rows[i] for i in update_examples(len(one.rows), asked, job_id=one.job_id, step=step)]
        weights = {f"{name}.weight": base.model.get_submodule(name).weight + delta(name) for name in values}

        def call(weights: dict[str, Tensor] = weights, **inputs: Any) -> Any:
            return torch.func.functional_call(base.model, weights, kwargs=inputs)

        peft_loss(call, rows).backward()  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_([leaf for leaf in leaves if leaf.grad is not None], asked.clip_norm)
        optimizer.step()
    with torch.no_grad():
        return {name: delta(name) for name in values}


@pytest.mark.parametrize("form", COMPACT)
def test_training_is_that_of_whole_weights(base: BaseModel, form: str) -> None:
    jobs = [job(base, form, user) for user in range(3)]
    done = {one.job_id: one for one in train(base, jobs, engine=ENGINE)}
    for one in jobs:
        assert one.frozen is not None
        frozen = one.frozen.parts()
        whole = AdapterSum((*frozen.terms, (1.0, own_part(frozen, done[one.job_id].tensors)))).whole()
        wanted = slow_deltas(base, one)
        before, moved = frozen.whole(), 0.0
        for name, delta in wanted.items():
            assert float((whole.delta(name) - delta).abs().max()) < 1e-11, name
            moved += float((whole.delta(name) - before.delta(name)).abs().max()) if name in before.modules else 0
        assert moved > 1e-2, "something was learned"


@pytest.mark.parametrize("form", COMPACT)
def test_a_user_gets_the_same_in_any_company(base: BaseModel, form: str) -> None:
    jobs = [job(base, form, user) for user in range(3)]
    together = {one.job_id: one.tensors for one in train(base, jobs, engine=ENGINE)}
    for one in jobs:
        (alone,) = train(base, [one], engine=EngineConfig(slots=1, tokens_per_batch=50))
        assert alone.tensors.keys() == together[one.job_id].keys()
        for name, value in alone.tensors.items():
            assert value.shape == together[one.job_id][name].shape, "in whatever company, nothing is padded"
            assert float((value - together[one.job_id][name]).abs().max()) < 1e-11, name


def test_stored_parts_come_back_as_adapters_over_what_lay_beneath(base: BaseModel, tmp_path: Path) -> None:
    """Kilobytes on disk; what is read back answers as what was trained."""
    for form in COMPACT:
        one = job(base, form, 1)
        assert one.frozen is not None
        stored = train_and_store(base, [one], tmp_path / form, engine=ENGINE).adapters[one.job_id]
        got = stored.recipe(base, rank=own_rank(one.config, one.frozen), beneath=one.frozen)
        assert got.make().rank == got.rank
        whole = AdapterSum((*one.frozen.parts().terms, *got.parts().terms))
        after, before = (
            sum(score_answers(base, [Request(row, adapter) for row in one.rows], engine=ENGINE))
            for adapter in (whole, one.frozen.parts())
        )
        assert after < before, f"{form}: the examples it has learned are likelier"
    sizes = {form: sum(path.stat().st_size for path in (tmp_path / form).glob("*.safetensors")) for form in COMPACT}
    assert sizes["coefficients"] < sizes["core"] < sizes["core+lora"]


def test_early_stopping_keeps_the_best_values(base: BaseModel) -> None:
    """What is exported is the state after the epoch with the lowest held-out loss."""
    one = job(base, "core", 1)
    long = replace(
        one, config=replace(one.config, epochs=6, lr=4.0, patience=9, held_out_share=0.3), held_out=random_rows(77, 3)
    )
    (done,) = train(base, [long], engine=ENGINE)
    best = min(range(len(done.held_out_losses)), key=lambda epoch: done.held_out_losses[epoch])
    assert done.held_out_losses[best] < done.held_out_losses[-1], "it got worse again"
    assert one.frozen is not None
    whole = AdapterSum((*one.frozen.parts().terms, (1.0, own_part(one.frozen.parts(), done.tensors))))
    nats = score_answers(base, [Request(row, whole) for row in long.held_out], engine=ENGINE)
    assert sum(nats) / sum(len(row.answer) for row in long.held_out) == pytest.approx(done.held_out_losses[best])


@pytest.mark.parametrize("form", COMPACT)
def test_the_norm_of_a_part_says_how_far_it_is_from_nothing(base: BaseModel, form: str) -> None:
    still = replace(job(base, form, 1), config=replace(config(form), lr=1e-300))
    (done,) = train(base, [still], engine=ENGINE)
    assert still.kind.norm(done.tensors) == pytest.approx(0.0, abs=1e-12)
    (done,) = train(base, [job(base, form, 1)], engine=ENGINE)
    assert still.kind.norm(done.tensors) > 0.01


def test_over_other_anchors_it_is_refused(base: BaseModel) -> None:
    one = job(base, "core", 1)
    (done,) = train(base, [one], engine=ENGINE)
    with pytest.raises(AdapterError, match="it was trained over other anchors"):
        own_part(composed(base, 2), done.tensors)
    with pytest.raises(AdapterError, match="what lies beneath has 0"):
        own_part(None, done.tensors)


def test_without_anything_beneath_there_is_nothing_to_change(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"'user 1' has nothing beneath to train inside of \(form 'core'\)"):
        list(train(base, [replace(job(base, "core", 1), frozen=None)], engine=ENGINE))


def test_banks_are_of_adapters() -> None:
    with pytest.raises(ConfigError, match=r"train\.form is 'core'"):
        BankConfig(train=config("core"))
    with pytest.raises(ConfigError, match="only plain adapters"):
        TrainConfig(form="core+lora", train_a=False)
    with pytest.raises(ConfigError, match="form is 'full'"):
        TrainConfig(form="full")
