"""PEFT's adapter folder, the format every other tool reads: `adapter_model.safetensors` and `adapter_config.json`.

Export is a rename of tensors: a finished adapter has scaling 1, so it is written with `lora_alpha` equal to its rank.
Import folds `lora_alpha / r` (or `/ sqrt(r)` for rank-stabilised LoRA) into B. What PEFT would apply beyond that (a
bias, a whole layer, DoRA, a changed base model) an adapter cannot hold; a folder with any of it is refused.

Example:
    >>> write_peft(adapter, Path("ada"), base_model="smollm2-135m")
    >>> same = read_peft(Path("ada"))
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.files import make_folder, read_json, storage_errors, write_json
from mta.lora.adapter import Adapter, Factors
from mta.tensor_files import load_tensors, save_tensors

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICKLE = "adapter_model.bin"
FACTORS = {"lora_A": "lora_B", "lora_B": "lora_A"}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

HONOURED = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights")
"""Options that decide what an adapter computes, and are read here."""

WITHOUT_EFFECT = (
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the tensors say it
    *("lora_dropout", "eva_config", "corda_config", "lora_ga_config"),  # of the training and its start
    *("megatron_core", "qalora_group_size"),  # matter with megatron_config and use_qalora only
)
"""Options that change nothing in a finished adapter whose tensors are given; every other one must be off."""

HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base model's weights alone."""


def write_peft(adapter: Adapter, folder: Path, *, base_model: str) -> None:
    """Write an adapter as a PEFT LoRA folder; the delta PEFT applies is exactly this adapter's.

    Modules of smaller rank are padded with zeros to the adapter's rank, since PEFT has one rank per file.

    Args:
        adapter: a finished adapter.
        folder: created if missing; the two files in it are replaced.
        base_model: name or path of the base model, recorded for the loader.

    Raises:
        AdapterError: the adapter holds NaN or infinity; nothing is written.
    """
    require_finite(dict(adapter.tensors()), str(folder))
    make_folder(folder)
    tensors: dict[str, Tensor] = {}
    for name, factors in adapter.modules.items():
        padded = _pad(factors, adapter.rank)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = padded.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = padded.B
    save_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(adapter, base_model))


def _config(adapter: Adapter, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapter.modules}),
        "inference_mode": True,
    }


def _pad(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    if not missing:
        return factors
    return Factors(
        torch.nn.functional.pad(factors.A, (0, 0, 0, missing)), torch.nn.functional.pad(factors.B, (0, missing))
    )


def read_peft(folder: Path) -> Adapter:
    """Read a PEFT LoRA folder as a finished adapter; what PEFT applies is this adapter and nothing else.

    Half-precision factors whose scaling is not 1 come as float32, so that folding it in rounds nothing away.

    Raises:
        StorageError: a file is missing or not readable.
        DataError: `adapter_config.json` is not JSON.
        AdapterError: pickle weights, another adapter type, an option that is not plain LoRA or of a wrong type, values
            that are not finite, or tensors that do not pair up, have another rank or are not LoRA's.
    """
    with storage_errors(folder, "read"):
        if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
            raise AdapterError(
                f"{folder} holds {PICKLE}, a pickle file, which can run code when it is opened; save it again "
                "with save_pretrained(..., safe_serialization=True) on a machine you trust"
            )
    config = read_json(folder / CONFIG)
    scaling = _read_scaling(config, str(folder / CONFIG))
    tensors, _ = load_tensors(folder / WEIGHTS)
    where = str(folder / WEIGHTS)
    modules = {name: _fold(name, factors, scaling, where) for name, factors in _pairs(tensors, where).items()}
    adapter = Adapter(modules)
    require_finite(dict(adapter.tensors()), where)
    return adapter


@dataclass(frozen=True, slots=True)
class _Setting:
    """A number of the config: that of most modules, and those of the modules whose name fits a pattern."""

    most: float
    patterns: Sequence[tuple[re.Pattern[str], float]]

    def of(self, module: str) -> float:
        """Return the number of one module; as in PEFT, the first pattern in the file that fits counts."""
        return next((value for pattern, value in self.patterns if pattern.match(module)), self.most)


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What B is multiplied with, module by module."""

    rank: _Setting
    alpha: _Setting
    root: bool
    """Whether alpha is divided by the root of the rank (rank-stabilised LoRA)."""

    def of(self, module: str) -> float:
        """Return the scaling of one module."""
        rank = self.rank.of(module)
        return self.alpha.of(module) / (rank**0.5 if self.root else rank)


def _read_scaling(config: Any, where: str) -> _Scaling:
    """Read from a config how the factors are scaled; refuse one that asks for anything else."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{where} says peft_type {kind!r:.80}; only LORA adapters can be imported")
    _require_plain(config, where)
    rank = _setting(config, "r", "rank_pattern", where)
    return _Scaling(rank, _setting(config, "lora_alpha", "alpha_pattern", where), root=bool(config.get("use_rslora")))


def _require_plain(config: Mapping[str, Any], where: str) -> None:
    for option, value in config.items():
        if value and option not in (*HONOURED, *WITHOUT_EFFECT):
            raise AdapterError(
                f"{where} sets {option!r:.80} to {value!r:.80}; only plain LoRA can be imported - train without that "
                "option, or take it out of the file if it changes nothing in what the adapter computes"
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"{where} sets bias to {config['bias']!r:.80}; an adapter holds no biases - train with bias='none'"
        )
    if config.get("init_lora_weights") not in HARMLESS_STARTS:
        raise AdapterError(
            f"{where} sets init_lora_weights to {config['init_lora_weights']!r:.80}, which changes the base model's "
            "weights too; save it again as plain LoRA with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)"
        )
    if config.get("use_rslora") not in (True, False, None):
        raise AdapterError(f"{where} sets use_rslora to {config['use_rslora']!r:.80}; wanted true or false")


def _setting(config: Mapping[str, Any], name: str, pattern_name: str, where: str) -> _Setting:
    patterns = config.get(pattern_name)
    if not isinstance(patterns, dict | None):
        raise AdapterError(
            f"{where} sets {pattern_name} to {patterns!r:.80}; wanted an object with a number for each pattern of "
            "module names"
        )
    numbers = {name: config.get(name), **{f"{pattern_name} {key!r}": value for key, value in (patterns or {}).items()}}
    for what, value in numbers.items():
        _require_number(what, value, whole=name == "r", where=where)
    found = [(_compiled(key, f"{where}, {pattern_name}"), value) for key, value in (patterns or {}).items()]
    return _Setting(config[name], found)


def _require_number(what: str, value: Any, *, whole: bool, where: str) -> None:
    wanted = "a whole number of 1 or more" if whole else "a finite number"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not (1 if whole else -sys.float_info.max) <= value <= sys.float_info.max:
        raise AdapterError(f"{where} has {what:.120} {value!r:.80}; wanted {wanted} - set what it was trained with")


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    """Return the expression by which PEFT looks for a pattern at the end of a module's name."""
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(
            f"{where}: {pattern!r:.80} is no regular expression ({error}); write a module's name or the end of one"
        ) from error


def _pairs(tensors: Mapping[str, Tensor], where: str) -> dict[str, Factors]:
    """Pair up the tensors of each module; every tensor is used."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not name or factor not in FACTORS or not key.endswith(".weight"):
            raise AdapterError(
                f"{where} holds {key!r}, which plain LoRA does not have; wanted <module>.lora_A.weight and "
                "<module>.lora_B.weight alone - train and save it without modules_to_save, biases, embeddings and DoRA"
            )
        if factor in found.setdefault(name, {}):
            raise AdapterError(f"{where} holds {factor} of {name} twice, with and without {PREFIX!r}; keep one of them")
        found[name][factor] = tensor
    if not found:
        raise AdapterError(f"{where} holds no tensors; save the adapter again")
    for name, pair in found.items():
        for factor, partner in FACTORS.items():
            if factor in pair and partner not in pair:
                raise AdapterError(f"{where} has {name}.{factor} but no matching {partner}; the file is incomplete")
    return {name: Factors(pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def _fold(name: str, factors: Factors, scaling: _Scaling, where: str) -> Factors:
    """Return the factors of one module with the scaling in B."""
    A, B, rank = factors.A, factors.B, scaling.rank.of(name)
    if A.dtype not in DTYPES or B.dtype not in DTYPES:
        raise AdapterError(f"{where}: {name} is of {A.dtype} and {B.dtype}; save it again as float32")
    if A.dim() != 2 or B.dim() != 2 or not A.shape[0] == B.shape[1] == rank or not A.numel() or not B.numel():
        raise AdapterError(
            f"{where}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}, and {CONFIG} gives it rank {rank}; "
            "wanted A (rank, d_in) and B (d_out, rank) of a linear layer - take both files of one training"
        )
    weight = scaling.of(name)
    dtype = torch.promote_types(A.dtype, B.dtype)
    if weight != 1:
        dtype = torch.promote_types(dtype, torch.float32)
    return Factors(A.to(dtype), B.to(dtype) * weight)


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that an adapter's tensors hold no NaN or infinity.

    Raises:
        AdapterError: they do; the message names the first tensor.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all():  # float8 has no isfinite
            raise AdapterError(f"{where}: tensor {name} holds NaN or infinity; the adapter is damaged - train it again")
