"""The settings of a whole run: what is asked, of which base model, and how every stage goes about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mta.config import BankConfig, EngineConfig, MergeConfig, TrainConfig
from mta.errors import ConfigError
from mta.tasks import get_task
from mta.tasks.released import RELEASED, released_answers
from mta.tasks.task import Task

DEFAULT_METHODS = ("usual",)
JUDGED = "mta"
"""The method that is compared with every other one in the table unless another is asked for."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, apart from the data."""

    task_id: str
    """What is asked, for example "lamp-2"."""
    base: str
    """Base model: a short name from `mta models`, a hub id or a path."""
    device: str = "auto"
    """Where to compute: "auto", "cpu", "cuda"."""
    dtype: str = "auto"
    """Number format of the base model: "auto", "float32" or "bfloat16"."""
    bank: BankConfig = field(default_factory=BankConfig)
    """Stage 1."""
    top_k: int = 2
    """Anchors merged per user (K); encoder and document of the match are the bank's."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    """Stage 2."""
    adapt: TrainConfig = field(default_factory=TrainConfig)
    """Stage 3."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """Rows of the table; names in `baselines.methods.SETS` stand for several."""
    judged: str = JUDGED
    """The row that is compared with every other one; where it is none of them, `JUDGED` is."""
    seeds: tuple[int, ...] = ()
    """Seeds of repeated runs, each with a bank of its own; () is one run with the seeds of the settings."""
    answers: str = "official"
    """How answers are given and read: "official", or "released" as the authors' scripts do (`tasks.released`)."""
    once: tuple[str, ...] = ()
    """Methods that answer under the first of the seeds only, to save time; names in `SETS` stand for several."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Packing; it decides speed only."""

    def __post_init__(self) -> None:
        if self.answers not in ("official", RELEASED):
            raise ConfigError(f"answers is {self.answers!r}; it must be official or {RELEASED}")

    @property
    def task(self) -> Task:
        """What is asked, with the answers asked for.

        Raises:
            NotFound: there is no such task.
        """
        task = get_task(self.task_id)
        return released_answers(task) if self.answers == RELEASED else task

    def seeded(self, seed: int) -> RunConfig:
        """Return the settings of one repeated run: anchors, initial values, orders and options depend on `seed`."""
        bank = replace(
            self.bank,
            anchors=replace(self.bank.anchors, seed=seed),
            train=replace(self.bank.train, seed=seed),
            population_train=replace(self.bank.population_train, seed=seed),
        )
        return replace(self, seeds=(), bank=bank, adapt=replace(self.adapt, seed=seed))
