"""PROPER: a population adapter, experts of groups over it, and a user's own LoRA with a router over the experts.

Three stages; each learns what the frozen ones before it leave over:
1. population: a LoRA on the rows of all anchors;
2. group: E experts on the same rows, mixed for each anchor by a router that reads the anchor's trained embedding;
3. user: the target's own LoRA, and a router that reads from it how to mix the experts for each token.
Targets meet nobody else in training: what a target has of the second stage comes from her nearest anchors.

Published in: Zhang et al. (2025), PROPER: A Progressive Learning Framework for Personalized Large Language Models with
Group-Level Adaptation. Its exact equations were not public when this was written; docs/rivals.md says what is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mta.adaptation import adapt_users
from mta.bank import Bank
from mta.bank_building import train_population
from mta.bank_plan import POPULATION_JOB, population_job
from mta.base_model import BaseModel
from mta.baselines.population import anchor_rows, bank_effort, same_tokens
from mta.config import TrainConfig
from mta.encoders import load_encoder
from mta.errors import AdapterError, ConfigError
from mta.files import sha256_json
from mta.lora.adapter import Adapter, Factors
from mta.lora.expert_training import EMBEDDINGS, OFFSET, ROUTER, GroupStack, UserStack
from mta.lora.experts import (
    ExpertFactors,
    Experts,
    RoutedUser,
    group_weights,
    imbalance,
    likeness,
    user_factors,
)
from mta.lora.stacked import OverlayRecipe, Shapes
from mta.merging import Match
from mta.personalize import Personalized, PersonalizedUsers, Resources, match_to_bank, renderer
from mta.records import User
from mta.seeds import stable_seed
from mta.training_plan import TrainJob
from mta.training_store import StoredAdapter, train_and_store

GROUP_JOB = "groups"
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
GROUP_ROUTERS = ("learned", "uniform")
USER_ROUTERS = ("lora-aware", "group", "top-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProperConfig:
    """What is PROPER's own. Learning rates, schedules, epochs and batches are the run's, as for every method."""

    target_modules: tuple[str, ...] = FEED_FORWARD
    """Linear layers with adapters (published: those of the feed-forward blocks)."""
    rank: int = 8
    """Rank of the population adapter and of each expert (not public)."""
    alpha: float = 16.0
    """LoRA alpha of both (not public)."""
    experts: int = 4
    """Groups E (not public)."""
    embedding_size: int = 64
    """Width of a user's embedding (not public)."""
    diversity: float = 0.05
    """Weight in the loss of how alike the anchors' expert weights are (such a loss is published, its form is not)."""
    balance: float = 0.05
    """Weight in the loss of how unevenly the anchors use the experts together (not public)."""
    group_router: str = "learned"
    """"learned" mixes the experts by a router over user embeddings (published); "uniform" alike for everybody."""
    user_router: str = "lora-aware"
    """"lora-aware" lets each user's own LoRA decide the mix token by token (published); "group" keeps what the group
    router says of the user; "top-1" keeps its first choice alone."""

    def __post_init__(self) -> None:
        for name in ("rank", "experts", "embedding_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("diversity", "balance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more and finite")
        for name, known in (("group_router", GROUP_ROUTERS), ("user_router", USER_ROUTERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")

    def shared_training(self, pool: TrainConfig) -> TrainConfig:
        """Return how the first two stages are trained where the run trains on the pool as `pool` says."""
        return replace(pool, rank=self.rank, alpha=self.alpha, target_modules=self.target_modules, train_a=True)

    def penalty(self, weights: Tensor) -> Tensor:
        """Return what the second stage's loss adds for the anchors' expert weights (P, E)."""
        return self.diversity * likeness(weights) + self.balance * imbalance(weights)


PROPER = ProperConfig()


def proper(
    users: Sequence[User], resources: Resources, *, config: ProperConfig = PROPER, name: str = "proper"
) -> PersonalizedUsers:
    """Train population, groups and users one after the other and serve every user with all three.

    Args:
        users: target users with histories.
        resources: base model, bank, and the pool its anchors come from.
        config: what is PROPER's own.
        name: sub-folder of all that is trained.

    Raises:
        BankError: there is no bank, or its vectors are of another encoder.
        DataError: an anchor is not in the pool, or a user is an anchor or has no history.
        AdapterError: the training of the first or second stage diverged.
    """
    bank, folder = resources.need_bank(), resources.folder / name
    matches = _nearest(users, bank, resources)
    groups = train_groups(resources, config, folder)
    weights = {name: groups.weights(match, config) for name, match in matches.items()}
    train = replace(resources.adapt, form="lora", target_modules=config.target_modules, train_a=True)
    kind = UserRouters(groups.experts, weights, routed=config.user_router == "lora-aware")
    own = adapt_users(
        resources.base,
        resources.task,
        users,
        folder / "users",
        beneath={},
        train=train,
        prompts=resources.prompts,
        engine=resources.engine,
        kind=kind,
        progress=resources.progress,
    )
    render = renderer(resources.task, resources.prompts)
    people = {}
    for user in users:
        stored = own.adapters.get(user.user_id)
        people[user.user_id] = Personalized(
            user,
            resources.task,
            _recipe(resources.base, groups.experts, weights[user.user_id], stored, rank=train.rank),
            render,
            resources.prompts,
            updates=stored.note.updates if stored else 0,
            adapter_bytes=_stored_bytes(resources.base, config, train if stored else None),
            note=own.skipped.get(user.user_id, ""),
        )
    return PersonalizedUsers(
        people, own.seconds, cut_rows=groups.cut_rows + own.cut_rows, shared_seconds=groups.seconds
    )


def _nearest(users: Sequence[User], bank: Bank, resources: Resources) -> dict[str, Match]:
    """Find each user's nearest anchors, as many as the run merges, weighed by similarity."""
    return match_to_bank(
        users,
        bank,
        encoder=resources.encoder or load_encoder(bank.config.match.encoder, device=resources.base.device),
        match=replace(resources.match, anchors="nearest"),
        cache=resources.cache,
        progress=resources.progress,
    )


def _recipe(
    base: BaseModel, experts: Experts, weights: Tensor, stored: StoredAdapter | None, *, rank: int
) -> OverlayRecipe:
    """Return the recipe of everything one user has; a user who was not trained has the experts alone."""

    def parts() -> RoutedUser:
        return RoutedUser(experts, weights, user_factors(stored.tensors(base), weights) if stored else {})

    decides = [experts.fingerprint, weights.tolist(), stored.note.fingerprint if stored else None]
    return OverlayRecipe(sha256_json(decides), rank if stored else 0, parts)


def _stored_bytes(base: BaseModel, config: ProperConfig, train: TrainConfig | None) -> int:
    """Count what is kept of one user: the embedding, and factors and routers where they were trained."""
    values = config.embedding_size if config.group_router == "learned" else 0
    if train:
        router = config.experts * (train.rank + 1) if config.user_router == "lora-aware" else 0
        shapes = base.shapes(train.target_modules).values()
        values += sum(train.rank * (d_out + d_in) + router for d_out, d_in in shapes)
    return 4 * values


# population and groups --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Groups:
    """What the first two stages leave."""

    experts: Experts
    embeddings: Mapping[str, Tensor]
    """Anchor's user id -> (D,) trained embedding; empty without a learned router."""
    router: Tensor
    """(E, D)"""
    offset: Tensor
    """(E,)"""
    seconds: float
    """Wall time of both trainings."""
    cut_rows: int

    def weights(self, match: Match, config: ProperConfig) -> Tensor:
        """Return how a target mixes the experts before any training of her own, (E,) float64.

        Her embedding is the mean of those of her nearest anchors, weighed by similarity; nothing is trained for it.
        """
        if config.group_router == "learned":
            nearest = torch.stack([self.embeddings[name] for name in match.anchor_ids]).double()  # (K, D)
            embedding = torch.tensor(match.weights, dtype=torch.float64) @ nearest
            weights = group_weights(embedding, self.router.double(), self.offset.double())
        else:
            weights = torch.full((config.experts,), 1 / config.experts, dtype=torch.float64)
        if config.user_router == "top-1":
            return torch.nn.functional.one_hot(weights.argmax(), config.experts).double()
        return weights


def train_groups(resources: Resources, config: ProperConfig, folder: Path) -> Groups:
    """Train the population adapter on what the bank was made of, and then the experts over it on the anchors' rows.

    The first sees as many tokens as the bank's training did, the second as many as all anchors together.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        AdapterError: one of the two diverged.
    """
    bank, base, engine = resources.need_bank(), resources.base, resources.engine
    data = anchor_rows(resources)
    rows = tuple(replace(row, person=index) for index, made in enumerate(data) for row in made.rows)
    shared, effort = config.shared_training(bank.config.population_train), bank_effort(resources)
    beneath = population_job(effort.rows, same_tokens(shared, effort.rows, effort.tokens))
    first = train_population(base, beneath, folder / "population", engine=engine, progress=resources.progress)
    tokens = sum(anchor.tokens for anchor in bank.anchors if not anchor.retired)
    train = same_tokens(shared, rows, tokens)
    population = first.adapters[POPULATION_JOB]
    start = starting_embeddings(bank.active_vectors, config.embedding_size, seed=train.seed)
    job = TrainJob(
        GROUP_JOB,
        rows,
        train,
        frozen=population.recipe(base, rank=train.rank),
        kind=GroupExperts(config, start),
    )
    with resources.progress("group training") as step:
        second = train_and_store(
            base, [job], folder / "groups", engine=engine, on_progress=lambda p: step(p.updates, p.total_updates)
        )
    stored = second.adapters[GROUP_JOB]
    if stored.note.diverged:
        raise AdapterError(
            f"the group experts diverged after {stored.note.updates} updates at learning rate {train.lr}: their "
            "gradients were no finite numbers; lower the learning rate of the bank (--bank-lr)"
        )
    tensors = stored.tensors(base)
    modules = {
        name: ExpertFactors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in base.shapes(config.target_modules)
    }
    fingerprint = sha256_json([population.note.fingerprint, stored.note.fingerprint])
    return Groups(
        experts=Experts(population.load(base), modules, fingerprint),
        embeddings=dict(zip(bank.anchor_ids, tensors.get(EMBEDDINGS, ()), strict=False)),
        router=tensors.get(ROUTER, torch.empty(0)),
        offset=tensors.get(OFFSET, torch.empty(0)),
        seconds=first.seconds + second.seconds,
        cut_rows=effort.cut_rows,
    )


def starting_embeddings(vectors: Tensor, size: int, *, seed: int) -> Tensor:
    """Return the embeddings that people's vectors (P, V) start from, (P, size) float64.

    A fixed seeded projection of what sets each person apart: her vector less the mean of all, at length 1. Entries are
    about as large as those of a standard normal draw.
    """
    apart = torch.nn.functional.normalize(vectors.double() - vectors.double().mean(dim=0), dim=-1)
    generator = torch.Generator().manual_seed(stable_seed(seed, "embedding"))
    return apart @ torch.randn(vectors.shape[1], size, dtype=torch.float64, generator=generator)


# kinds of jobs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupExperts:
    """The kind of job that trains experts and a router over people."""

    config: ProperConfig
    embeddings: Tensor
    """(P, D): where the embeddings of a job's P people start."""
    name: str = "group experts"

    def fingerprint(self, job: TrainJob) -> Any:
        """Identify the number of experts, the router and the penalty."""
        config = self.config
        start = self.embeddings.tolist() if config.group_router == "learned" else None
        return [config.experts, config.diversity, config.balance, start]

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> GroupSlots:
        """Make empty slots; see `Kind.make`."""
        return GroupSlots(
            shapes,
            slots=slots,
            experts=self.config.experts,
            rank=jobs[0].config.rank,
            scaling=jobs[0].config.scaling,
            embeddings=self.embeddings,
            routed=self.config.group_router == "learned",
            penalty=self.config.penalty,
            like=like,
            compute_dtype=compute_dtype,
        )

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the Frobenius norm of all experts' deltas together."""
        names = [key.removesuffix(".A") for key in tensors if key.endswith(".A")]
        experts = [
            Adapter({name: Factors(tensors[f"{name}.A"][index], tensors[f"{name}.B"][:, index]) for name in names})
            for index in range(self.config.experts)
        ]
        return float(torch.tensor([expert.norm() for expert in experts]).norm())


class GroupSlots(GroupStack):
    """Slots that train experts."""

    def start(self, slot: int, job: TrainJob) -> None:
        """Start new experts over the job's population adapter."""
        if job.frozen is None:
            raise AdapterError(f"{job.job_id!r} has no population adapter beneath; train one first")
        self.fill(slot, job.frozen.make(), seed=job.config.seed, key=job.job_id)


@dataclass(frozen=True, slots=True)
class UserRouters:
    """The kind of job that trains one user's own factors and router over finished experts."""

    experts: Experts
    weights: Mapping[str, Tensor]
    """job id -> (E,): how the user mixes the experts to begin with."""
    routed: bool
    """Whether users have routers; without them they keep these weights."""
    name: str = "user routers"

    def fingerprint(self, job: TrainJob) -> Any:
        """Identify the experts, the weights to begin with, and whether there is a router."""
        return [self.experts.fingerprint, self.weights[job.job_id].tolist(), self.routed]

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> UserSlots:
        """Make empty slots; see `Kind.make`."""
        return UserSlots(
            shapes,
            self.experts,
            self.weights,
            slots=slots,
            rank=jobs[0].config.rank,
            scaling=jobs[0].config.scaling,
            routed=self.routed,
            like=like,
            compute_dtype=compute_dtype,
        )

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the Frobenius norm of the delta of the user's own factors."""
        names = [key.removesuffix(".A") for key in tensors if key.endswith(".A")]
        return Adapter({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}).norm()


class UserSlots(UserStack):
    """Slots that train users."""

    def start(self, slot: int, job: TrainJob) -> None:
        """Start a new user with her own weights of the experts."""
        self.fill(slot, job.job_id, seed=job.config.seed)
