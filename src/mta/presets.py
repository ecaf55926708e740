"""Named settings: the paper's tables, the authors' script, and one for small models.

`paper` follows Table 4 and the bank settings of the authors' code; `released` follows their run script (one epoch, one
learning rate for all tasks, factors mixed one by one, the two anchors' weights exchanged, the first window of a history
as its document, 368 words of every field, answers given and read as their evaluation does). Both are meant for
Llama-3-8B. `small` is for base models below a billion parameters, where the paper's learning rates hardly move an
adapter; its values were chosen on pool users only, by `benchmarks/choose_small_preset.py`
(docs/results/small_preset.md): it is the paper's method at learning rates that reach such a model. `recommended` goes
beyond the paper with what pool users have shown to help (docs/personalization.md): an adapter for everybody beneath the
anchors, calmer anchors, and a way to answer of its own. `recommended-large` is the same at the paper's learning rates,
for base models of a billion parameters and more; nobody has measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mta.config import AnchorConfig, BankConfig, MatchConfig, MergeConfig, PromptConfig, TrainConfig
from mta.errors import unknown_name

SMALL_MODEL_PARAMETERS = 1_000_000_000
"""Base models below this size use the preset `recommended` unless told otherwise, others `recommended-large`."""
_LONG_ANSWERS = ("lamp-4", "lamp-5", "own", "own-by-id")
"""Tasks whose pools have so many answer tokens that once over everybody's examples is enough."""

RECORD_WORDS = 368
"""Words of each field that the authors' records keep once anchors have been chosen from them."""
_PAPER_ADAPT = TrainConfig(rank=4, alpha=8.0, warmup_ratio=0.0, batch_size=8, drop_last=True)
_PAPER_EPOCHS = {"lamp-1": 2, "lamp-2": 3, "lamp-3": 1, "lamp-4": 3, "lamp-5": 2}
_PAPER_LR = {"lamp-1": 5e-5, "lamp-2": 1e-4, "lamp-3": 5e-5, "lamp-4": 1e-4, "lamp-5": 5e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings of the three stages for one task."""

    bank: BankConfig
    adapt: TrainConfig
    merge: MergeConfig
    answers: str = "official"
    """How answers are given and read: "official", or "released" as the authors' scripts do (`tasks.released`)."""
    method: str = "mta"
    """The row of a table that these settings are for (`baselines.methods`)."""


def paper(task_id: str) -> Preset:
    """Return the paper's settings: Table 4 for adaptation; a task of one's own takes the headline task's row."""
    row = task_id if task_id in _PAPER_LR else "lamp-4"
    adapt = replace(_PAPER_ADAPT, lr=_PAPER_LR[row], epochs=_PAPER_EPOCHS[row])
    return Preset(bank=BankConfig(), adapt=adapt, merge=MergeConfig())


def released(task_id: str) -> Preset:
    """Return the settings of the authors' run script: 5e-5, one epoch, for every task, and its exchanged weights."""
    adapt = replace(_PAPER_ADAPT, lr=5e-5, epochs=1)
    prompts = PromptConfig(input_words=RECORD_WORDS, history_words=RECORD_WORDS, max_tokens=8192)
    bank = BankConfig(
        prompts=prompts,
        match=MatchConfig(document="first512"),
        train=replace(BankConfig().train, drop_last=True),
    )
    merge = MergeConfig(mode="linear", weights="inverted")
    return Preset(bank=bank, adapt=adapt, merge=merge, answers="released")


def small(task_id: str) -> Preset:
    """Return settings for base models below a billion parameters."""
    train = TrainConfig(lr=1e-3, epochs=3, batch_size=4)
    adapt = TrainConfig(rank=4, alpha=8.0, lr=1e-3, epochs=3, batch_size=2)
    bank = BankConfig(
        anchors=AnchorConfig(encoder="minilm"),
        match=MatchConfig(encoder="minilm"),
        train=train,
        population_train=replace(train, lr=5e-4, batch_size=8),
    )
    return Preset(bank=bank, adapt=adapt, merge=MergeConfig())


def recommended(task_id: str) -> Preset:
    """Return our own settings: the best that pool users have shown, on base models below a billion parameters."""
    usual = small(task_id)
    everybody = TrainConfig(lr=1e-3, epochs=1 if task_id in _LONG_ANSWERS else 3, batch_size=8)
    bank = replace(
        usual.bank,
        anchors=replace(usual.bank.anchors, bank_size=24),
        train=replace(usual.bank.train, lr=5e-4, held_out_share=0.2, max_items=20),
        judges=24,
        population_beneath=True,
        population_train=everybody,
    )
    return replace(usual, bank=bank, method="mta-blended+pooled")


def recommended_large(task_id: str) -> Preset:
    """Return our own settings at the paper's learning rates, for base models of a billion parameters and more."""
    ours, theirs = recommended(task_id), paper(task_id)
    bank = replace(
        ours.bank,
        anchors=replace(theirs.bank.anchors, bank_size=ours.bank.anchors.bank_size),
        match=theirs.bank.match,
        train=replace(ours.bank.train, lr=theirs.bank.train.lr),
        population_train=replace(ours.bank.population_train, lr=theirs.bank.train.lr),
    )
    return replace(ours, bank=bank, adapt=replace(theirs.adapt, drop_last=False))


PRESETS: Mapping[str, Callable[[str], Preset]] = MappingProxyType(
    {
        "paper": paper,
        "released": released,
        "small": small,
        "recommended": recommended,
        "recommended-large": recommended_large,
    }
)


def find_preset(name: str, task_id: str) -> Preset:
    """Return a preset's settings for one task.

    Raises:
        NotFound: no preset has that name.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name](task_id)


def default_preset(base_parameters: int) -> str:
    """Return the name of the preset for a base model of this many parameters."""
    return "recommended" if base_parameters < SMALL_MODEL_PARAMETERS else "recommended-large"
