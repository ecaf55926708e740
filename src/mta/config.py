"""One frozen dataclass of settings per stage, each field documented once.

The text under a field is its only documentation: `field_help` hands it to the command line. `to_dict` and
`from_dict` are the JSON form that is saved beside every artefact.

Example:
    >>> TrainConfig(lr=1e-3).rank
    8
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mta.errors import ConfigError

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUERY_VALUE = ("q_proj", "v_proj")
MAX_SEED = 2**32 - 1
"""Largest seed that scikit-learn's k-means takes."""

BY_HISTORY = ("search", "evidence")
"""Ways to weigh the anchors of one user that ask the base model about the user's own history."""
OWN_FORMS = ("lora", "core", "coefficients", "core+lora", "coefficients+lora")
"""What of a user is trained."""
WEIGHTS = ("similarity", "softmax", "uniform", "fixed", "inverted", *BY_HISTORY)
"""Ways to weigh the anchors of one user."""

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_at_least(config: object, least: float, *names: str) -> None:
    """Check that fields are finite and not below a number."""
    for name in names:
        value = getattr(config, name)
        _require(least <= value < math.inf, f"{name} is {value}; it must be {least} or more{_finite(value)}")


def require_above_zero(config: object, *names: str) -> None:
    """Check that fields are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        _require(0 < value < math.inf, f"{name} is {value}; it must be above 0{_finite(value)}")


def require_below_one(config: object, *names: str) -> None:
    """Check that fields are in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{name} is {value}; it must be in [0, 1)")


def _finite(value: float) -> str:
    return " and finite" if value == math.inf else ""


def require_one_of(config: object, name: str, known: tuple[str, ...]) -> None:
    """Check that a field is one of the known values."""
    value = getattr(config, name)
    _require(value in known, f"{name} is {value!r}; choose one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How examples become prompts; bank, adaptation and evaluation must share one."""

    history_k: int = 1
    """History items shown in the prompt, chosen by BM25; 0 shows none."""
    history_words: int = 368
    """Words kept of each field of a shown history item."""
    input_words: int = 768
    """Words kept of the query's own text."""
    max_tokens: int = 2048
    """Longest prompt plus answer in tokens; history is cut first, then the query's text, never the answer."""
    template: str = "auto"
    """"chat" uses the tokenizer's chat template, "plain" none, "auto" chat where the tokenizer has one."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "history_k")
        require_at_least(self, 1, "history_words", "input_words")
        require_at_least(self, 32, "max_tokens")
        require_one_of(self, "template", ("auto", "chat", "plain"))


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """How anchor users are chosen from the pool (MTA Eq. 2 and 3)."""

    bank_size: int = 50
    """Clusters asked for, so the largest possible number of anchors."""
    min_history: int = 10
    """An anchor must have MORE history items than this; a cluster whose most active user has not is dropped."""
    min_label_entropy: float = 0.0
    """Label tasks: an anchor's own answers must have at least this entropy in nats; who always answers the same teaches
    an adapter nothing but that. 0 asks for none."""
    encoder: str = "deberta-v3-large"
    """Encoder of the item vectors: a short name from `mta models`, a hub id or a path."""
    seed: int = 42
    """Seed of k-means; as that of training, so that a run has one."""
    n_init: int = 10
    """Restarts of k-means, pinned because scikit-learn's default has changed between releases."""
    max_iter: int = 3000
    """Most iterations of one k-means run."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "bank_size", "n_init", "max_iter")
        require_at_least(self, 0, "min_label_entropy")
        require_at_least(self, 0, "min_history")
        _require(0 <= self.seed <= MAX_SEED, f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one adapter is trained. Defaults are the paper's bank settings (Llama-3-8B)."""

    rank: int = 8
    """Rank r of the adapter."""
    alpha: float = 16.0
    """LoRA alpha; the delta is (alpha / rank) * B @ A."""
    form: str = "lora"
    """"lora" trains an adapter; "core" a matrix between the factors of what lies beneath, "coefficients" a weight of
    each of its parts, layer by layer: kilobytes a user; "core+lora" and "coefficients+lora" both. Methods that put
    nothing beneath train an adapter."""
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Last name parts of the linear layers that get an adapter."""
    train_a: bool = True
    """Train A as well as B; without it the seeded A stays frozen (where A is shared: half the bytes, exact linear
    merges)."""
    lr: float = 1e-4
    """Peak learning rate."""
    schedule: str = "cosine"
    """Learning rate after warm-up: "cosine" or "linear" to zero, or "constant"."""
    warmup_ratio: float = 0.1
    """Share of the updates over which the learning rate rises from zero."""
    epochs: int = 3
    """Passes over the examples."""
    batch_size: int = 2
    """Examples per update (per-device batch times accumulation)."""
    drop_last: bool = False
    """Drop an epoch's last incomplete update (but never its only one), as older Hugging Face trainers do."""
    max_updates: int = 0
    """Stop after this many updates; 0 means no limit."""
    min_updates: int = 0
    """Add epochs until there are at least this many updates; 0 means as `epochs` says."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    dropout: float = 0.0
    """Share of the input features that A does not see in an update, drawn anew for each update and layer; of plain
    adapters (form "lora")."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip_norm: float = 1.0
    """Largest gradient norm of one user's adapter; 0 turns clipping off."""
    held_out_share: float = 0.0
    """Share of a user's own examples kept aside for early stopping; 0 trains on all of them."""
    max_items: int = 0
    """Most history items of one user that become examples, the last ones; 0 means all. All are still shown."""
    allow_proxy: bool = False
    """Where a history gives no training pair of the task itself (LaMP-1 without known citations), train on the task's
    related question (title to abstract) instead of leaving the user out."""
    patience: int = 1
    """Epochs without a better held-out loss before a user stops; used when held_out_share > 0."""
    seed: int = 42
    """Seed of the initial A and of the order of examples."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "rank", "epochs", "batch_size", "patience")
        require_at_least(self, 0, "max_updates", "min_updates", "max_items", "clip_norm", "weight_decay")
        require_above_zero(self, "alpha", "lr", "eps")
        require_below_one(self, "warmup_ratio", "beta1", "beta2", "held_out_share", "dropout")
        _require(
            self.form == "lora" or (self.dropout == 0 and self.train_a),
            f"form is {self.form!r} with dropout {self.dropout} and train_a {self.train_a}; only plain adapters (form "
            "'lora') have dropout or an A that is not trained",
        )
        require_one_of(self, "schedule", ("cosine", "linear", "constant"))
        require_one_of(self, "form", OWN_FORMS)
        names = self.target_modules
        _require(
            isinstance(names, tuple) and bool(names) and all(isinstance(name, str) and name for name in names),
            f"target_modules is {names!r}; it must be a tuple of names, at least one, for example ('q_proj',)",
        )
        _require(
            self.max_updates == 0 or self.min_updates <= self.max_updates,
            f"min_updates is {self.min_updates}, above max_updates {self.max_updates}; lower one or raise the other",
        )

    @property
    def scaling(self) -> float:
        """Alpha / rank, the factor on B @ A."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How a target user finds anchors (MTA Eq. 4)."""

    encoder: str = "bge-small"
    """Encoder of the matching vectors: a short name from `mta models`, a hub id or a path."""
    document: str = "item_mean"
    """"item_mean" averages item vectors; "first512" embeds the joined history, of which an encoder reads only its
    first window (what the authors' code does)."""
    top_k: int = 2
    """Anchors merged per user (K)."""
    anchors: str = "nearest"
    """"nearest" takes the most similar anchors; "random" any, drawn anew for each user (a control)."""

    def __post_init__(self) -> None:
        require_one_of(self, "document", ("item_mean", "first512"))
        require_one_of(self, "anchors", ("nearest", "random"))
        require_at_least(self, 1, "top_k")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How anchors become one merged adapter (MTA Eq. 5)."""

    mode: str = "cat"
    """"cat" is the exact weighted sum of the deltas; "linear" mixes A and B separately (the authors' code)."""
    scale: float = 1.0
    """Factor on the merged delta; 1 is the paper."""
    weights: str = "similarity"
    """"similarity" is the paper's Eq. 6; "softmax" of the similarities over `temperature`; "uniform" 1/K; "fixed" gives
    the nearest anchor `first_weight` and the others the rest in equal parts; "inverted" gives two anchors each other's
    weight (the authors' released code); "search" finds the weights that explain the user's own history best;
    "evidence" gives each anchor its posterior, by how likely it alone makes that history."""
    temperature: float = 0.05
    """Of "softmax": the smaller, the more the nearest anchor counts."""
    first_weight: float = 0.5
    """Of "fixed": the nearest anchor's weight."""
    evidence_temperature: float = 10.0
    """Of "evidence": what the history's log-likelihood is divided by; 1 is Bayes' rule as it stands."""
    nobody: bool = False
    """Of "evidence": nobody's adapter has a posterior too, which shrinks the merge where no anchor fits."""

    def __post_init__(self) -> None:
        require_one_of(self, "mode", ("cat", "linear"))
        require_above_zero(self, "evidence_temperature")
        require_one_of(self, "weights", WEIGHTS)
        require_above_zero(self, "temperature")
        _require(0 <= self.first_weight <= 1, f"first_weight is {self.first_weight}; it must be from 0 to 1")
        _require(
            self.weights == "fixed" or self.first_weight == MergeConfig.first_weight,
            f"first_weight is {self.first_weight}, and weights is {self.weights!r}, which makes no use of it; "
            "take weights 'fixed' (--weights fixed)",
        )
        _require(math.isfinite(self.scale), f"scale is {self.scale}; it must be finite")


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Everything that decides a bank."""

    prompts: PromptConfig = field(default_factory=PromptConfig)
    """Prompts of the anchors' examples; adaptation and evaluation take them from the bank."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Choice of anchors."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training of each anchor's adapter."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """Encoder and document of the matching vectors."""
    shared_init: bool = True
    """All anchors start from one A, so that adapters can be mixed factor by factor."""
    judges: int = 0
    """People of the pool with an answered query, a third of it at most, who are set aside before anything is trained:
    neither anchors nor part of the population adapter. Temperatures, strengths of a prior and weights of sources are
    then chosen on them, who are asked about some of their own items too; 0 takes other users."""
    population_beneath: bool = False
    """First train one adapter on all pool users and train the anchors on top of it, so that they learn only what
    differs from it."""
    population_train: TrainConfig = field(default_factory=TrainConfig)
    """Training of that population adapter; its rank may differ from the anchors', its targets must be among theirs."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "judges")
        for name in ("train", "population_train"):
            form = getattr(self, name).form
            _require(form == "lora", f"{name}.form is {form!r}; what lies beneath users is an adapter, form 'lora'")
        wider = sorted(set(self.population_train.target_modules) - set(self.train.target_modules))
        _require(
            not (self.population_beneath and wider),
            f"population_train.target_modules has {', '.join(wider)}, which train.target_modules has not; anchors "
            "lie on the population adapter, so give them these targets too",
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How work is packed. It decides speed and memory, never which update a user gets."""

    slots: int = 8
    """Users trained at the same time."""
    tokens_per_batch: int = 2048
    """Most tokens in one forward and backward pass."""
    predict_tokens_per_batch: int = 4096
    """Most tokens, padding included, in one pass without gradients."""
    checkpoint_every_s: float = 120.0
    """Seconds between checkpoints of unfinished users."""
    grouped: bool = False
    """All users' adapters of a layer in one product, on a GPU that can; the result is the same to rounding."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "slots", "tokens_per_batch", "predict_tokens_per_batch")
        require_at_least(self, 0, "checkpoint_every_s")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """List where two configs in JSON form differ, for people: "adapt.lr 0.001 -> 0.0005". What one lacks counts."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new, place = before.get(name), now.get(name), f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changed_settings(old, new, prefix=f"{place}.")
        elif old != new:
            found.append(f"{place} {old} -> {new}")
    return found


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a config from its JSON form.

    Raises:
        ConfigError: a field is unknown or has the wrong type; the message lists the fields.
    """
    _require(isinstance(values, Mapping), f"{cls.__name__} is {values!r}; it must be an object of its fields")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    _require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}; fields: {', '.join(hints)}")
    return cls(**{name: _coerce(f"{cls.__name__}.{name}", hints[name], value) for name, value in values.items()})


def _coerce(where: str, hint: Any, value: Any) -> Any:
    """Turn a JSON value into what a field holds, or say what it must be; `where` names the field."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(f"{where}[{place}]", get_args(hint)[0], item) for place, item in enumerate(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and abs(value) <= sys.float_info.max:
        return float(value)
    right = isinstance(value, get_origin(hint) or hint) and not (hint is int and isinstance(value, bool))
    _require(right, f"{where} is {value!r}; it must be {getattr(hint, '__name__', hint)}")
    return value


@functools.cache
def _documentation(cls: type) -> Mapping[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    texts: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def field_help(cls: type, name: str) -> str:
    """Return the documentation of one config field, for the command line."""
    return _documentation(cls)[name]
