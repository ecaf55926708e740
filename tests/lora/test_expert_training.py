"""Experts and users in training against plain autograd over token-by-token formulas and torch's own AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import random_adapter, random_rows, tiny_base
from mta import training
from mta.base_model import BaseModel
from mta.baselines.proper import FEED_FORWARD, GroupExperts, ProperConfig, UserRouters
from mta.config import EngineConfig, TrainConfig
from mta.errors import AdapterError, ConfigError
from mta.forward import answer_nll
from mta.lora.adapter import Adapter, recipe
from mta.lora.expert_training import EMBEDDINGS, OFFSET, ROUTER
from mta.lora.experts import RoutedUser, group_weights, user_factors
from mta.lora.stacked import initial_A
from mta.packing import TokenRow
from mta.training import Trained, train
from mta.training_plan import TrainJob, learning_rate, update_examples
from slow_experts import Delta, count_of, random_experts, slow_experts, slow_model, slow_nll, slow_user, softmax

ALONE = EngineConfig(slots=1, tokens_per_batch=4096)
TOGETHER = EngineConfig(slots=3, tokens_per_batch=120)
CONFIG = TrainConfig(
    rank=2, alpha=6.0, lr=2e-2, epochs=2, batch_size=3, clip_norm=0.5, weight_decay=0.02, target_modules=FEED_FORWARD
)
SETTINGS = ProperConfig(experts=3, embedding_size=5, diversity=0.4, balance=0.3)
PEOPLE = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def slowly_trained(
    job: TrainJob, values: Mapping[str, Tensor], loss_of: Callable[[Sequence[TokenRow]], Tensor]
) -> list[float]:
    """Train `values` in place as a job says, with torch's AdamW; return the losses, penalties included."""
    config, losses = job.config, []
    optimizer = torch.optim.AdamW(values.values(), lr=1.0, eps=config.eps, weight_decay=config.weight_decay)
    for step in range(job.total):
        rows = [job.rows[i] for i in update_examples(len(job.rows), config, job_id=job.job_id, step=step)]
        optimizer.param_groups[0]["lr"] = learning_rate(config, step=step, total=job.total)
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(list(values.values()), config.clip_norm)
        optimizer.step()
    return losses


def free(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_() for name, value in values.items()}


def require_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-11) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert float((found[name] - value.detach()).abs().max()) < tolerance, name


# groups -------------------------------------------------------------------------------------------------------------


def group_rows() -> tuple[TokenRow, ...]:
    return tuple(replace(row, person=place % 4) for place, row in enumerate(random_rows(7, 8, longest=12)))


def group_job(base: BaseModel, settings: ProperConfig = SETTINGS, **changes: Any) -> TrainJob:
    population = random_adapter(base, FEED_FORWARD, seed=9, rank=3)
    return TrainJob(
        "groups",
        changes.pop("rows", group_rows()),
        replace(CONFIG, **changes),
        frozen=recipe(population),
        kind=GroupExperts(settings, PEOPLE),
    )


def first_groups(base: BaseModel, job: TrainJob) -> dict[str, Tensor]:
    """What a group job starts from, worked out apart from the stack."""
    seed, values = job.config.seed, {}
    for name, (d_out, d_in) in base.shapes(FEED_FORWARD).items():
        drawn = [initial_A((2, d_in), seed=seed, key=f"groups/{e}", module=name) for e in range(3)]
        values[f"{name}.A"] = torch.stack(drawn).double()
        values[f"{name}.B"] = torch.zeros(d_out, 3, 2).double()
    values[EMBEDDINGS] = PEOPLE
    values[ROUTER] = initial_A((3, 5), seed=seed, key="groups", module=ROUTER).double()
    values[OFFSET] = torch.zeros(3).double()
    return values


def slow_groups(base: BaseModel, job: TrainJob, values: Mapping[str, Tensor], rows: Sequence[TokenRow]) -> Tensor:
    """The second stage's loss: one person at a time, one row at a time, one expert at a time."""
    assert job.frozen is not None
    population = job.frozen.make()
    people = [
        softmax([values[ROUTER][e] @ values[EMBEDDINGS][person] + values[OFFSET][e] for e in range(3)])
        for person in range(4)
    ]

    def of(person: int, module: str) -> Delta:
        A, B = values[f"{module}.A"], values[f"{module}.B"]

        def delta(x: Tensor) -> Tensor:
            total = population.modules[module].B @ (population.modules[module].A @ x)
            for e in range(3):
                total = total + people[person][e] * job.config.scaling * (B[:, e] @ (A[e] @ x))
            return total

        return delta

    models = [slow_model(base, {name: of(person, name) for name in base.shapes(FEED_FORWARD)}) for person in range(4)]
    nll = sum(slow_nll(models[row.person], row) for row in rows) / sum(len(row.answer) for row in rows)
    alike, mean = torch.zeros(()).double(), [sum(one[e] for one in people) / 4 for e in range(3)]
    for u in range(4):
        for v in range(4):
            if u != v:
                dot = sum(a * b for a, b in zip(people[u], people[v], strict=True))
                squares = sum(a * a for a in people[u]) * sum(b * b for b in people[v])
                alike = alike + dot * dot / squares / 12
    uneven = sum(share * torch.log(share * 3) for share in mean)
    return nll + SETTINGS.diversity * alike + SETTINGS.balance * uneven


def test_group_training_is_plain_autograd_over_the_formula(base: BaseModel) -> None:
    job = group_job(base)
    (found,) = train(base, [job], engine=ALONE)
    values = free(first_groups(base, job))
    slowly_trained(job, values, lambda rows: slow_groups(base, job, values, rows))
    wanted = {name: value * job.config.scaling if name.endswith(".B") else value for name, value in values.items()}
    require_same(found.tensors, wanted)
    weights = group_weights(*(found.tensors[name] for name in (EMBEDDINGS, ROUTER, OFFSET)))
    assert float(weights.std(dim=0).max()) > 0.01, "people should differ"
    assert found.updates == 6


def test_packing_does_not_change_group_training(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update in one pass, and cut into passes of a row or two."""
    job, passes = group_job(base), []
    monkeypatch.setattr(training, "answer_nll", lambda *given: passes.append(len(given[1].rows)) or answer_nll(*given))
    (one,) = train(base, [job], engine=ALONE)
    whole = len(passes)
    (two,) = train(base, [job], engine=replace(ALONE, tokens_per_batch=max(map(len, job.rows))))
    assert whole == one.updates
    assert len(passes) - whole > 1.5 * whole, "updates are cut"
    require_same(one.tensors, two.tensors, 1e-12)


def test_the_diversity_loss_drives_people_apart(base: BaseModel) -> None:
    """The expert weights of the same people, trained with and without it."""

    def likeness_after(diversity: float) -> float:
        settings = replace(SETTINGS, diversity=diversity, balance=0.0)
        (found,) = train(base, [group_job(base, settings, epochs=10)], engine=ALONE)
        weights = group_weights(*(found.tensors[name] for name in (EMBEDDINGS, ROUTER, OFFSET)))
        unit = torch.nn.functional.normalize(weights, dim=-1)
        return float((unit @ unit.T)[~torch.eye(4, dtype=torch.bool)].square().mean())

    assert likeness_after(1.0) < likeness_after(0.0) - 0.05


def test_a_uniform_router_learns_experts_alone(base: BaseModel) -> None:
    """All mixed alike: E experts of rank r are one LoRA of rank E r, whoever a row belongs to."""
    settings = replace(SETTINGS, group_router="uniform")
    other = tuple(replace(row, person=0) for row in group_rows())
    one, two = (
        next(train(base, [group_job(base, settings, rows=rows)], engine=ALONE)) for rows in (group_rows(), other)
    )
    assert all(name.endswith((".A", ".B")) for name in one.tensors)
    require_same(one.tensors, two.tensors, 1e-12)


def test_experts_need_a_population_adapter_with_their_modules(base: BaseModel) -> None:
    job = group_job(base)
    with pytest.raises(AdapterError, match="no population adapter"):
        next(train(base, [replace(job, frozen=None)], engine=ALONE))
    narrow = recipe(random_adapter(base, ("up_proj",), seed=1))
    with pytest.raises(AdapterError, match="same target modules"):
        next(train(base, [replace(job, frozen=narrow)], engine=ALONE))


def test_experts_keep_the_best_of_early_stopping(base: BaseModel) -> None:
    """Held-out rows go through the same router; with the start as the best, the start is what is exported."""
    job = replace(group_job(base, lr=0.5, held_out_share=0.3), held_out=random_rows(50, 2))
    (found,) = train(base, [job], engine=ALONE)
    assert len(found.held_out_losses) >= 2
    assert found.held_out_losses[0] == min(found.held_out_losses)
    require_same(found.tensors, first_groups(base, job), 1e-12)


# users --------------------------------------------------------------------------------------------------------------

NAMES = ("ann", "bob", "cy", "dee", "eve")


def user_jobs(base: BaseModel, *, routed: bool = True) -> list[TrainJob]:
    """Users of unequal histories and settings, one of whom stops early."""
    experts = random_experts(base)
    drawn = torch.randn(len(NAMES), count_of(experts), generator=torch.Generator().manual_seed(4)).double()
    kind = UserRouters(experts, dict(zip(NAMES, drawn.softmax(-1), strict=True)), routed=routed)
    changes: list[dict[str, Any]] = [
        {},
        {"batch_size": 2, "epochs": 1, "lr": 4e-2},
        {"clip_norm": 0.05},
        {"batch_size": 1, "epochs": 9, "patience": 1, "held_out_share": 0.3, "lr": 4e-2},
        {"batch_size": 8, "schedule": "linear"},
    ]
    return [
        TrainJob(
            name,
            random_rows(20 + place, 3 + place, longest=12),
            replace(CONFIG, **changed),
            held_out=random_rows(40, 2) if changed.get("held_out_share") else (),
            kind=kind,
        )
        for place, (name, changed) in enumerate(zip(NAMES, changes, strict=True))
    ]


def kind_of(job: TrainJob) -> UserRouters:
    assert isinstance(job.kind, UserRouters)
    return job.kind


@pytest.mark.parametrize("routed", [True, False], ids=["lora-aware", "group"])
def test_user_training_is_plain_autograd_over_the_formula(base: BaseModel, routed: bool) -> None:
    job = user_jobs(base, routed=routed)[0]
    (found,) = train(base, [job], engine=ALONE)
    kind = kind_of(job)
    start = {}
    for name, (d_out, d_in) in base.shapes(FEED_FORWARD).items():
        start[f"{name}.A"] = initial_A((2, d_in), seed=job.config.seed, key="ann", module=name).double()
        start[f"{name}.B"] = torch.zeros(d_out, 2).double()
        if routed:
            start[f"{name}.V"], start[f"{name}.c"] = torch.zeros(3, 2).double(), kind.weights["ann"].log()
    values = free(start)

    def of(module: str) -> Delta:
        def delta(x: Tensor) -> Tensor:
            seen = values[f"{module}.A"] @ x
            weights = list(kind.weights["ann"])
            if routed:
                V, c = values[f"{module}.V"], values[f"{module}.c"]
                weights = softmax([V[e] @ seen + c[e] for e in range(3)])
            own = job.config.scaling * (values[f"{module}.B"] @ seen)
            return slow_experts(kind.experts, module, x, weights) + own

        return delta

    model = slow_model(base, {name: of(name) for name in base.shapes(FEED_FORWARD)})
    losses = slowly_trained(
        job, values, lambda rows: sum(slow_nll(model, row) for row in rows) / sum(len(row.answer) for row in rows)
    )
    assert found.losses == pytest.approx(losses, abs=1e-11)
    wanted = {name: value * job.config.scaling if name.endswith(".B") else value for name, value in values.items()}
    require_same(found.tensors, wanted)


def results(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> dict[str, Trained]:
    return {done.job_id: done for done in train(base, jobs, engine=engine)}


@pytest.mark.parametrize("routed", [True, False], ids=["lora-aware", "group"])
def test_users_trained_together_equal_each_alone(base: BaseModel, routed: bool) -> None:
    jobs = user_jobs(base, routed=routed)
    together, turned = results(base, jobs, TOGETHER), results(base, jobs[::-1], replace(TOGETHER, slots=5))
    for job in jobs:
        alone = results(base, [job], ALONE)[job.job_id]
        for mixed in (together[job.job_id], turned[job.job_id]):
            assert mixed.updates == alone.updates
            require_same(mixed.tensors, alone.tensors, 1e-12)
            assert mixed.losses == pytest.approx(alone.losses, abs=1e-11)


def test_a_user_starts_as_her_group(base: BaseModel) -> None:
    """Before the first update the loss is that of the frozen stages with the group router's weights."""
    for job in user_jobs(base):
        kind = kind_of(job)
        model = slow_model(base, slow_user(RoutedUser(kind.experts, kind.weights[job.job_id], {})))
        chosen = update_examples(len(job.rows), job.config, job_id=job.job_id, step=0)
        rows = [job.rows[index] for index in chosen]
        nll = sum(slow_nll(model, row) for row in rows) / sum(len(row.answer) for row in rows)
        assert results(base, [job], ALONE)[job.job_id].losses[0] == pytest.approx(float(nll), abs=1e-11)


def test_training_changes_nothing_that_is_shared(base: BaseModel) -> None:
    jobs = user_jobs(base)
    experts = kind_of(jobs[0]).experts
    before = [tensor.clone() for tensor in shared_tensors(experts.population, experts)]
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    results(base, jobs, TOGETHER)
    for one, two in zip(before, shared_tensors(experts.population, experts), strict=True):
        assert torch.equal(one, two)
    assert all(torch.equal(weights[name], value) for name, value in base.model.state_dict().items())


def shared_tensors(population: Adapter, experts: Any) -> list[Tensor]:
    factors = [tensor for module in experts.modules.values() for tensor in (module.A, module.B)]
    return [*(tensor for _, tensor in population.tensors()), *factors]


def test_an_exported_user_answers_with_the_loss_she_was_trained_to(base: BaseModel) -> None:
    """One update more would start from exactly what was exported."""
    job = user_jobs(base)[0]
    longer = replace(job, config=replace(job.config, schedule="constant", warmup_ratio=0.0, epochs=4))
    shorter = replace(longer, config=replace(longer.config, epochs=3))
    done = results(base, [shorter], ALONE)["ann"]
    following = results(base, [longer], ALONE)["ann"].losses[done.updates]
    kind = kind_of(job)
    user = RoutedUser(kind.experts, kind.weights["ann"], user_factors(done.tensors, kind.weights["ann"]))
    model = slow_model(base, slow_user(user))
    chosen = update_examples(len(job.rows), longer.config, job_id="ann", step=done.updates)
    rows = [job.rows[index] for index in chosen]
    nll = sum(slow_nll(model, row) for row in rows) / sum(len(row.answer) for row in rows)
    assert following == pytest.approx(float(nll), abs=1e-11)


def test_kinds_do_not_mix_in_one_call(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match="train them in separate calls"):
        next(train(base, [group_job(base), user_jobs(base)[0]], engine=ALONE))
