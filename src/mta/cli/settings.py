"""Config fields as options: one line a flag, with type and help from the config itself.

A preset gives every value; an option that is given replaces it. What was not given stays None.

Example:
    >>> given = Given({TOP_K: 1})
    >>> given.apply(plan).match.top_k
    1
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from mta.config import (
    OWN_FORMS,
    WEIGHTS,
    AnchorConfig,
    BankConfig,
    EngineConfig,
    MatchConfig,
    MergeConfig,
    PromptConfig,
    TrainConfig,
    field_help,
)
from mta.errors import ConfigError
from mta.presets import Preset, default_preset, find_preset
from mta.serving.settings import NUMBERS, UNKNOWN, ServeConfig

if TYPE_CHECKING:
    from mta.base_model import BaseModel
    from mta.evaluation.run_config import RunConfig

T = TypeVar("T")
TINY = "tiny-random"


METAVARS = {int: "N", float: "X"}
"""How values stand in the help: short, so that the names of long options fit into 80 columns."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One option that sets one config field, in one or several places of a `Plan`."""

    flag: str
    owner: type
    field: str
    places: tuple[str, ...]
    """Paths of configs inside a `Plan`, for example "bank.train"."""
    panel: str
    """Heading in the help."""
    choices: tuple[str, ...] = ()
    note: str = ""
    """What the field's own help does not say."""

    @property
    def name(self) -> str:
        """Python name of the option."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter of a command; None means not given."""
        kind: Any = get_type_hints(self.owner)[self.field]
        if self.choices:
            kind = Literal[self.choices]
        text = f"{field_help(self.owner, self.field)} {self.note}".strip().replace("[", "\\[")
        flags = f"{self.flag}/--no-{self.name.replace('_', '-')}" if kind is bool else self.flag
        metavar = "" if kind is bool else METAVARS.get(kind, "NAME")
        option = typer.Option(flags, help=text, metavar=metavar, rich_help_panel=self.panel, show_default=False)
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All settings of a call."""

    bank: BankConfig
    match: MatchConfig
    merge: MergeConfig
    adapt: TrainConfig
    engine: EngineConfig = field(default_factory=EngineConfig)
    answers: str = "official"
    method: str = "mta"
    """The row of a table that the settings are for."""

    def run_config(self, task_id: str, *, base: str, device: str, dtype: str, methods: tuple[str, ...]) -> RunConfig:
        """Return the settings of a whole run on one base model."""
        from mta.evaluation.run_config import RunConfig

        return RunConfig(
            task_id=task_id,
            base=base,
            device=device,
            dtype=dtype,
            bank=self.bank,
            top_k=self.match.top_k,
            merge=self.merge,
            adapt=self.adapt,
            methods=methods,
            judged=self.method,
            answers=self.answers,
            engine=self.engine,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """All settings of a server."""

    match: MatchConfig
    merge: MergeConfig
    adapt: TrainConfig
    serve: ServeConfig = field(default_factory=ServeConfig)


@dataclass(frozen=True, slots=True)
class Given:
    """The settings of a command line; None where an option was not given."""

    values: Mapping[Setting, Any]

    def apply(self, plan: T) -> T:
        """Return the plan (or any config with such places) with every given value in place.

        Raises:
            ConfigError: a value is out of range; the message names the option.
        """
        for setting, value in self.values.items():
            if value is None:
                continue
            try:
                for place in setting.places:
                    plan = _replaced(plan, [*place.split("."), setting.field], value)
            except ConfigError as error:
                raise ConfigError(f"{setting.flag}: {error}") from error
        return plan


def _replaced(config: T, path: list[str], value: Any) -> T:
    name, *rest = path
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} has no fields")
    if rest:
        value = _replaced(getattr(config, name), rest, value)
    elif isinstance(config, TrainConfig) and name == "rank":
        return replace(config, rank=value, alpha=config.scaling * value)  # the scale of the delta stays
    return replace(config, **{name: value})


def plan_for(base: BaseModel, *, task_id: str, preset: str | None, given: Given, merges: bool = True) -> Plan:
    """Return a preset's settings with what the command line says otherwise.

    Args:
        base: the loaded model; its size decides the preset where none is named.
        task_id: what is asked.
        preset: name of a preset, or None.
        given: options of the command line.
        merges: whether anchors are merged in this call.

    Raises:
        ConfigError: a value is out of range, or more anchors are to be merged than the bank can have.
        NotFound: there is no such preset.
    """
    from mta.personalize import parameter_count

    chosen: Preset = find_preset(preset or default_preset(parameter_count(base)), task_id)
    bank = tiny_encoders(chosen.bank) if base.name == TINY else chosen.bank
    usual = Plan(
        bank=bank,
        match=bank.match,
        merge=chosen.merge,
        adapt=chosen.adapt,
        answers=chosen.answers,
        method=chosen.method,
    )
    plan = given.apply(usual)
    plan = replace(plan, match=replace(plan.bank.match, top_k=plan.match.top_k))
    if merges and plan.match.top_k > plan.bank.anchors.bank_size:
        raise ConfigError(
            f"top_k is {plan.match.top_k}, more than the {plan.bank.anchors.bank_size} anchors the bank is asked to "
            "have; lower --top-k or raise --bank-size"
        )
    return plan


def tiny_encoders(bank: BankConfig) -> BankConfig:
    """Return the settings with the encoder that needs no weights."""
    return replace(bank, anchors=replace(bank.anchors, encoder=TINY), match=replace(bank.match, encoder=TINY))


_TRAINED = ("bank.train", "bank.population_train")
_BOTH = (*_TRAINED, "adapt")
_SHARED = "Of the anchors, and of adapters trained on everybody."

BANK_SIZE = Setting("--bank-size", AnchorConfig, "bank_size", ("bank.anchors",), "Bank")
MIN_HISTORY = Setting("--min-history", AnchorConfig, "min_history", ("bank.anchors",), "Bank")
MIN_ENTROPY = Setting("--min-label-entropy", AnchorConfig, "min_label_entropy", ("bank.anchors",), "Bank")
ENCODER = Setting("--encoder", AnchorConfig, "encoder", ("bank.anchors",), "Bank")
SEED = Setting(
    "--seed", TrainConfig, "seed", (*_BOTH, "bank.anchors"), "Training", note="Of k-means and of the options as well."
)
TOP_K = Setting("--top-k", MatchConfig, "top_k", ("match",), "Matching and merging")
MERGE = (
    Setting("--merge", MergeConfig, "mode", ("merge",), "Matching and merging", ("cat", "linear")),
    Setting("--scale", MergeConfig, "scale", ("merge",), "Matching and merging"),
    Setting("--weights", MergeConfig, "weights", ("merge",), "Matching and merging", WEIGHTS),
    Setting("--temperature", MergeConfig, "temperature", ("merge",), "Matching and merging"),
    Setting("--first-weight", MergeConfig, "first_weight", ("merge",), "Matching and merging"),
    Setting("--evidence-temperature", MergeConfig, "evidence_temperature", ("merge",), "Matching and merging"),
    Setting("--nobody", MergeConfig, "nobody", ("merge",), "Matching and merging"),
)
ENGINE = (
    Setting("--slots", EngineConfig, "slots", ("engine",), "Speed"),
    Setting("--tokens-per-batch", EngineConfig, "tokens_per_batch", ("engine",), "Speed"),
)
ANCHORS = (
    BANK_SIZE,
    MIN_HISTORY,
    MIN_ENTROPY,
    ENCODER,
    Setting("--seed", AnchorConfig, "seed", ("bank.anchors",), "Bank"),
)
BANK = (
    BANK_SIZE,
    MIN_HISTORY,
    MIN_ENTROPY,
    ENCODER,
    Setting("--match-encoder", MatchConfig, "encoder", ("bank.match",), "Bank"),
    Setting("--document", MatchConfig, "document", ("bank.match",), "Bank", ("item_mean", "first512")),
    Setting("--bank-epochs", TrainConfig, "epochs", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-lr", TrainConfig, "lr", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-rank", TrainConfig, "rank", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-min-updates", TrainConfig, "min_updates", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-batch-size", TrainConfig, "batch_size", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-held-out-share", TrainConfig, "held_out_share", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-patience", TrainConfig, "patience", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-dropout", TrainConfig, "dropout", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-weight-decay", TrainConfig, "weight_decay", _TRAINED, "Bank", note=_SHARED),
    Setting("--bank-train-a", TrainConfig, "train_a", ("bank.train",), "Bank"),
    Setting("--shared-init", BankConfig, "shared_init", ("bank",), "Bank"),
    Setting("--max-items", TrainConfig, "max_items", _TRAINED, "Bank", note=_SHARED),
    Setting("--judges", BankConfig, "judges", ("bank",), "Bank"),
    Setting("--population-beneath", BankConfig, "population_beneath", ("bank",), "Bank"),
    Setting("--history-k", PromptConfig, "history_k", ("bank.prompts",), "Prompts"),
    Setting("--history-words", PromptConfig, "history_words", ("bank.prompts",), "Prompts"),
    Setting("--input-words", PromptConfig, "input_words", ("bank.prompts",), "Prompts"),
    Setting("--max-tokens", PromptConfig, "max_tokens", ("bank.prompts",), "Prompts"),
    Setting("--template", PromptConfig, "template", ("bank.prompts",), "Prompts", ("auto", "chat", "plain")),
    Setting("--allow-proxy", TrainConfig, "allow_proxy", _BOTH, "Training"),
    SEED,
)
ADAPT = (
    Setting("--adapt-epochs", TrainConfig, "epochs", ("adapt",), "Adaptation"),
    Setting("--adapt-lr", TrainConfig, "lr", ("adapt",), "Adaptation"),
    Setting("--adapt-form", TrainConfig, "form", ("adapt",), "Adaptation", OWN_FORMS),
    Setting("--adapt-rank", TrainConfig, "rank", ("adapt",), "Adaptation"),
    Setting("--adapt-min-updates", TrainConfig, "min_updates", ("adapt",), "Adaptation"),
    Setting("--adapt-batch-size", TrainConfig, "batch_size", ("adapt",), "Adaptation"),
    Setting("--adapt-held-out-share", TrainConfig, "held_out_share", ("adapt",), "Adaptation"),
    Setting("--adapt-patience", TrainConfig, "patience", ("adapt",), "Adaptation"),
    Setting("--adapt-dropout", TrainConfig, "dropout", ("adapt",), "Adaptation"),
    Setting("--adapt-weight-decay", TrainConfig, "weight_decay", ("adapt",), "Adaptation"),
    Setting("--adapt-train-a", TrainConfig, "train_a", ("adapt",), "Adaptation"),
    Setting("--adapt-max-items", TrainConfig, "max_items", ("adapt",), "Adaptation"),
)
RUN = (*BANK, TOP_K, *MERGE, *ADAPT, *ENGINE)
ADAPT_ALONE = (
    TOP_K,
    *MERGE,
    *ADAPT,
    Setting("--allow-proxy", TrainConfig, "allow_proxy", ("adapt",), "Adaptation"),
    Setting("--seed", TrainConfig, "seed", ("adapt",), "Adaptation"),
    *ENGINE,
)


def _serve(name: str, choices: tuple[str, ...] = ()) -> Setting:
    return Setting(f"--{name.replace('_', '-')}", ServeConfig, name, ("serve",), "Serving", choices)


SERVE = (
    _serve("unknown", UNKNOWN),
    _serve("adapter_numbers", NUMBERS),
    *map(
        _serve,
        (
            *("most_rows", "most_tokens", "most_waiting", "most_waiting_each", "deadline_s", "most_new_tokens"),
            *("most_prompt_chars", "most_body_bytes", "most_history", "requests_per_minute", "cache_mb"),
            *("adapt_slots", "adapt_tokens", "adapt_patience_s"),
        ),
    ),
)
