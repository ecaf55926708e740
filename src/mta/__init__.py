"""Personalized language models: one frozen base, a bank of LoRA adapters, a tiny adapter per person.

Everything in `__all__` is imported when it is first asked for, so that `import mta` is quick.

Example:
    >>> import mta
    >>> base = mta.load_base_model("smollm2-135m")
    >>> bank = mta.load_bank(Path("runs/demo/bank"), base=base)
    >>> me = mta.personalize(user, bank=bank, base=base)
    >>> mta.answer(me, question, base=base)
    'comedy'
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mta.bank import Bank, load_bank
    from mta.bank_building import Encoders, build_bank
    from mta.base_model import BaseModel, load_base_model
    from mta.config import (
        AnchorConfig,
        BankConfig,
        EngineConfig,
        MatchConfig,
        MergeConfig,
        PromptConfig,
        TrainConfig,
    )
    from mta.data.read import read_users
    from mta.encoders import load_encoder
    from mta.errors import (
        AdapterError,
        BankError,
        ConfigError,
        DataError,
        ModelError,
        MtaError,
        NotFound,
        StorageError,
    )
    from mta.evaluation.export import load_user
    from mta.evaluation.run import run
    from mta.evaluation.run_config import RunConfig
    from mta.lora.adapter import Adapter
    from mta.lora.peft_format import read_peft, write_peft
    from mta.personalize import Personalized, answer, personalize
    from mta.records import HistoryItem, Query, User
    from mta.tasks import TASKS, get_task
    from mta.tasks.task import Task

__all__ = [
    "TASKS",
    "Adapter",
    "AdapterError",
    "AnchorConfig",
    "Bank",
    "BankConfig",
    "BankError",
    "BaseModel",
    "ConfigError",
    "DataError",
    "Encoders",
    "EngineConfig",
    "HistoryItem",
    "MatchConfig",
    "MergeConfig",
    "ModelError",
    "MtaError",
    "NotFound",
    "Personalized",
    "PromptConfig",
    "Query",
    "RunConfig",
    "StorageError",
    "Task",
    "TrainConfig",
    "User",
    "answer",
    "build_bank",
    "get_task",
    "load_bank",
    "load_base_model",
    "load_encoder",
    "load_user",
    "personalize",
    "read_peft",
    "read_users",
    "run",
    "write_peft",
]

_HOMES = {
    "mta.bank": ("Bank", "load_bank"),
    "mta.bank_building": ("Encoders", "build_bank"),
    "mta.base_model": ("BaseModel", "load_base_model"),
    "mta.config": (
        "AnchorConfig",
        "BankConfig",
        "EngineConfig",
        "MatchConfig",
        "MergeConfig",
        "PromptConfig",
        "TrainConfig",
    ),
    "mta.data.read": ("read_users",),
    "mta.encoders": ("load_encoder",),
    "mta.errors": (
        "AdapterError",
        "BankError",
        "ConfigError",
        "DataError",
        "ModelError",
        "MtaError",
        "NotFound",
        "StorageError",
    ),
    "mta.evaluation.export": ("load_user",),
    "mta.evaluation.run": ("RunConfig", "run"),
    "mta.lora.adapter": ("Adapter",),
    "mta.lora.peft_format": ("read_peft", "write_peft"),
    "mta.personalize": ("Personalized", "answer", "personalize"),
    "mta.records": ("HistoryItem", "Query", "User"),
    "mta.tasks": ("TASKS", "get_task"),
    "mta.tasks.task": ("Task",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mta' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `mta.personalize` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "personalize" and isinstance(value, ModuleType):
            value = value.personalize
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
