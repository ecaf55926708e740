"""Per-Pcs: other users' adapters are cut into pieces, one per module, and put together anew for every user.

The sharers are the bank's anchors; their pieces lie over the bank's population adapter where it has one, or are trained
anew over a task adapter. Each piece has
a gate, trained on its sharer's own rows while everything else is frozen. A target is not trained on: her rows go
through the model once, and at every module the pieces whose gates fit the inputs best are mixed. All that is kept of
her is which pieces were mixed and with what weights.

Published in: Tan et al. (2024), Personalized Pieces: Efficient Personalized Large Language Models through Collaborative
Efforts. docs/rivals.md says what differs here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mta.adapter_files import load_trained, save_trained
from mta.base_model import BaseModel
from mta.baselines.population import anchor_rows
from mta.baselines.task_bank import bank_over_population
from mta.config import TrainConfig
from mta.errors import AdapterError, ConfigError, MtaError
from mta.files import safe_name, sha256_json
from mta.forward import answer_nll
from mta.lora.adapter import Adapter, Recipe, as_sum, recipe
from mta.lora.attach import attached
from mta.lora.gates import ComposingStack, GateStack, compose, stack_gates
from mta.lora.stacked import Shapes
from mta.packing import TokenRow, pack_rows
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer, stack_recipes
from mta.records import User
from mta.training_plan import TrainJob
from mta.training_store import train_and_store
from mta.user_rows import UserRows, user_rows

log = logging.getLogger(__name__)

NO_EXAMPLES = "no training example in the history"
BYTES_PER_PIECE = 12
"""Stored of a user for every piece that is mixed: its module, its sharer and its weight, 4 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerPcsConfig:
    """What is Per-Pcs' own. Defaults are the published settings, but for how gates are trained."""

    top_k: int = 3
    """Pieces mixed per module (published README: 3); all of them where the bank has fewer."""
    temperature: float = 1.0
    """Of the softmax over the scores of those pieces (published: 1)."""
    batch_size: int = 6
    """Rows of the target that choose pieces together (published: 6)."""
    gate_settings: str = "bank"
    """"bank" trains gates with the settings of the bank's anchors, as every training on the pool is tuned here;
    "published" with the three below."""
    gate_lr: float = 2e-5
    """Peak learning rate of the gates (published)."""
    gate_updates: int = 200
    """Updates of each sharer's gates (published)."""
    gate_batch_size: int = 6
    """Rows per update of the gates (published)."""
    task_adapt: str = "none"
    """What lies beneath the sharers' adapters: "none", the bank as it is; "population" (published), the adapter of
    the population control, over which theirs are trained anew."""

    def __post_init__(self) -> None:
        for name in ("top_k", "batch_size", "gate_updates", "gate_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("temperature", "gate_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if self.gate_settings not in ("bank", "published"):
            raise ConfigError(f"gate_settings is {self.gate_settings!r}; choose one of bank, published")
        if self.task_adapt not in ("none", "population"):
            raise ConfigError(f"task_adapt is {self.task_adapt!r}; choose one of none, population")

    def gate_training(self, anchors: TrainConfig) -> TrainConfig:
        """Return how gates are trained where the bank's anchors were trained as `anchors` says.

        Nothing is held out: the best gates by a held-out loss may be those before training, which are zero and say
        nothing about inputs.
        """
        anchors = replace(anchors, held_out_share=0.0)
        if self.gate_settings == "bank":
            return anchors
        return replace(
            anchors,
            lr=self.gate_lr,
            batch_size=self.gate_batch_size,
            epochs=1,
            min_updates=self.gate_updates,
            max_updates=self.gate_updates,
            schedule="cosine",
            warmup_ratio=0.0,
            drop_last=False,
            weight_decay=0.0,
            beta2=0.95,
            clip_norm=0.3,
        )


PER_PCS = PerPcsConfig()


def per_pcs(
    users: Sequence[User], resources: Resources, *, config: PerPcsConfig = PER_PCS, name: str = "per-pcs"
) -> PersonalizedUsers:
    """Put an adapter together for every user from pieces of the bank's anchors.

    Args:
        users: target users with histories.
        resources: base model, bank, and the pool its anchors come from.
        config: what is Per-Pcs' own.
        name: sub-folder of the gates and of what was chosen for each user.

    Raises:
        BankError: there is no bank.
        DataError: an anchor is not in the pool, or a user is an anchor.
        ConfigError: a task adapter is asked for that changes layers which the anchors' adapters do not.
        AdapterError: every anchor's training diverged.
    """
    resources.need_bank().check_targets(users)
    folder = resources.folder / name
    if config.task_adapt == "population":
        resources = replace(resources, bank=bank_over_population(resources, folder / "sharers"))
    bank = resources.need_bank()
    sharers = train_gates(resources, config, folder / "gates")
    train = replace(resources.adapt, held_out_share=0.0)
    data = {
        user.user_id: user_rows(resources.base.tokens, resources.task, user, train=train, prompts=resources.prompts)
        for user in users
    }
    chosen = choose_pieces(data, sharers, resources, config, folder / "users")
    beneath = [recipe(bank.population)] if bank.population else []
    render = renderer(resources.task, resources.prompts)
    people = {}
    for user in users:
        own = chosen.get(user.user_id)
        parts = [*beneath, own.recipe(sharers)] if own else beneath
        people[user.user_id] = Personalized(
            user,
            resources.task,
            stack_recipes(parts),
            render,
            resources.prompts,
            adapter_bytes=own.stored_bytes if own else 0,
            note="" if own else NO_EXAMPLES,
        )
    return PersonalizedUsers(
        people,
        sum(own.seconds for own in chosen.values()),
        cut_rows=sharers.cut_rows + sum(rows.cut_rows for rows in data.values()),
        shared_seconds=bank.train_seconds + sharers.seconds,
    )


# gates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gates:
    """The kind of job that trains the gates of one frozen adapter."""

    adapters: Mapping[str, Recipe]
    """job id -> the adapter whose pieces are gated; what lies beneath it, un-gated, is the job's `frozen`."""
    name: str = "gates"

    def fingerprint(self, job: TrainJob) -> Any:
        """Identify the adapter."""
        return self.adapters[job.job_id].fingerprint

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> GateSlots:
        """Make empty slots; see `Kind.make`."""
        return GateSlots(self.adapters, shapes, slots=slots, like=like, compute_dtype=compute_dtype)

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the Euclidean norm of all gates together."""
        return float(torch.stack([gate.double().square().sum() for gate in tensors.values()]).sum().sqrt())


class GateSlots(GateStack):
    """Slots that train gates."""

    def __init__(
        self, adapters: Mapping[str, Recipe], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> None:
        super().__init__(shapes, slots=slots, like=like, compute_dtype=compute_dtype)
        self._adapters = adapters

    def start(self, slot: int, job: TrainJob) -> None:
        """Start gates of zeros over the job's adapter and what lies beneath it."""
        self.fill(slot, self._adapters[job.job_id].make(), job.frozen.make() if job.frozen else None)


@dataclass(frozen=True, slots=True)
class Sharers:
    """M anchors whose pieces can be mixed."""

    user_ids: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    gates: Mapping[str, Tensor]
    """Module -> (M, d_in)."""
    fingerprint: str
    """Of the gates and all that decided them."""
    seconds: float
    """Wall time of the training of the gates."""
    cut_rows: int

    @property
    def modules(self) -> list[str]:
        """Modules that have pieces, in an order that no file or model decides."""
        return sorted(self.gates)


def train_gates(resources: Resources, config: PerPcsConfig, folder: Path) -> Sharers:
    """Train the gates of all anchors of the bank, each on the rows of its own history.

    Raises:
        DataError: an anchor is not in `resources.pool`.
        AdapterError: the gates of every anchor diverged.
    """
    bank = resources.need_bank()
    train = config.gate_training(bank.config.train)
    data = anchor_rows(resources)
    kind = Gates({rows.user_id: recipe(bank.adapter(rows.user_id)) for rows in data})
    beneath = recipe(bank.population) if bank.population else None
    jobs = [TrainJob(rows.user_id, rows.rows, train, frozen=beneath, kind=kind) for rows in data]
    with resources.progress("gate training") as step:
        trained = train_and_store(
            resources.base,
            jobs,
            folder,
            engine=resources.engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )
    good = {name: stored for name, stored in trained.adapters.items() if not stored.note.diverged}
    for name in trained.adapters.keys() - good.keys():
        log.warning("anchor %s shares no pieces: the training of its gates diverged", name)
    if not good:
        raise AdapterError(
            f"the gates of all {len(jobs)} anchors diverged at learning rate {train.lr}: their gradients were no "
            "finite numbers; lower the learning rate of the bank (--bank-lr)"
        )
    return Sharers(
        user_ids=tuple(good),
        adapters=tuple(bank.adapter(name) for name in good),
        gates=stack_gates([stored.tensors(resources.base) for stored in good.values()]),
        fingerprint=sha256_json([(name, stored.note.fingerprint) for name, stored in good.items()]),
        seconds=trained.seconds,
        cut_rows=sum(rows.cut_rows for rows in data),
    )


# composition ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pieces of one user."""

    weights: Mapping[str, Tensor]
    """Module -> (M,) weights of the sharers, the mean over the user's batches; 0 where a piece is not mixed."""
    fingerprint: str
    """Of everything that decided them."""
    seconds: float
    """Wall time it took to choose them."""

    @property
    def stored_bytes(self) -> int:
        """What is kept of the user: every piece mixed, by number, with its weight."""
        return BYTES_PER_PIECE * sum(int(row.count_nonzero()) for row in self.weights.values())

    def recipe(self, sharers: Sharers) -> Recipe:
        """Return the adapter put together from the pieces, without what lies beneath."""
        rank = max(adapter.rank for adapter in sharers.adapters)
        return Recipe(self.fingerprint, rank, lambda: as_sum(compose(sharers.adapters, self.weights)))


def choose_pieces(
    data: Mapping[str, UserRows],
    sharers: Sharers,
    resources: Resources,
    config: PerPcsConfig,
    folder: Path,
) -> dict[str, Chosen]:
    """Choose every user's pieces, or read them back where exactly these were chosen before; no rows, no pieces.

    Users do not meet in a batch, so that nobody's choice depends on who else is there.
    """
    base, bank = resources.base, resources.need_bank()
    settings = {name: getattr(config, name) for name in ("top_k", "temperature", "batch_size")}
    common = [sharers.fingerprint, bank.checksum, settings, base.fingerprint, str(base.dtype)]
    chosen, waiting = dict[str, Chosen](), dict[str, str]()
    for name, rows in data.items():
        if not rows.rows:
            continue
        wanted = sha256_json([*common, [(row.prompt, row.answer) for row in rows.rows]])
        if found := _saved(_path(folder, name), wanted, sharers, base):
            chosen[name] = found
        else:
            waiting[name] = wanted
    if not waiting:
        return chosen
    like = torch.empty(0, device=base.device, dtype=base.dtype)
    stack = ComposingStack(
        sharers.adapters,
        sharers.gates,
        beneath=bank.population,
        top_k=config.top_k,
        temperature=config.temperature,
        like=like,
    )
    with resources.progress("composition") as step:
        for done, (name, wanted) in enumerate(waiting.items(), start=1):
            started = time.monotonic()
            weights = mean_weights(base, stack, data[name].rows, batch_size=config.batch_size)
            chosen[name] = Chosen(weights, wanted, time.monotonic() - started)
            _save(_path(folder, name), chosen[name], sharers, base)
            step(done, len(waiting))
    return chosen


def mean_weights(
    base: BaseModel, stack: ComposingStack, rows: Sequence[TokenRow], *, batch_size: int
) -> dict[str, Tensor]:
    """Send rows through the model and return each module's mean weights over the batches, (M,).

    A batch is one forward pass whatever its size, since all of its rows choose together.
    """
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    total: dict[str, Tensor] = {}
    with torch.no_grad(), attached(base.model, stack):
        for batch in batches:
            pack = pack_rows(batch, device=base.device)
            stack.route(pack.sources, pack.owners)
            answer_nll(base, pack)
            total = {name: row + total.get(name, 0.0) for name, row in stack.weights.items()}
    return {name: row / len(batches) for name, row in total.items()}


def _path(folder: Path, user_id: str) -> Path:
    return folder / f"{safe_name(user_id)}.safetensors"


def _save(path: Path, chosen: Chosen, sharers: Sharers, base: BaseModel) -> None:
    table = torch.stack([chosen.weights[name] for name in sharers.modules])  # (modules, M)
    places = table.nonzero()
    tensors = {"pieces": places.to(torch.int32), "weights": table[places[:, 0], places[:, 1]]}
    note = {"fingerprint": chosen.fingerprint, "seconds": chosen.seconds, "sharers": sharers.user_ids}
    save_trained(path, tensors, base=base, note=note)


def _saved(path: Path, wanted: str, sharers: Sharers, base: BaseModel) -> Chosen | None:
    """Read back what was chosen; None where nothing sound of exactly this choice is there (damage is in the log)."""
    if not path.exists():
        return None
    try:
        tensors, note = load_trained(path, base=base)
    except MtaError as error:
        log.warning("choosing the pieces of %s again: %s", path.stem, error)
        return None
    if note.get("fingerprint") != wanted:
        return None
    modules, places = sharers.modules, tensors["pieces"].long()
    table = torch.zeros(len(modules), len(sharers.user_ids), dtype=tensors["weights"].dtype)
    table[places[:, 0], places[:, 1]] = tensors["weights"]
    return Chosen(dict(zip(modules, table, strict=True)), wanted, float(note["seconds"]))
