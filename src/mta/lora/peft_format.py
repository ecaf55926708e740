"""PEFT's adapter folder, the format every other tool reads: `adapter_model.safetensors` and `adapter_config.json`.

Export is a rename of tensors: a finished adapter has scaling 1, so it is written with `lora_alpha` equal to its rank.
Import folds `lora_alpha / r` (or `/ sqrt(r)` for rank-stabilised LoRA) into B.

Example:
    >>> write_peft(adapter, Path("ada"), base_model="smollm2-135m")
    >>> same = read_peft(Path("ada"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.files import make_folder, read_json, write_json
from mta.lora.adapter import Adapter, Factors
from mta.tensor_files import load_tensors, save_tensors

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
UNSUPPORTED = ("use_dora", "fan_in_fan_out")


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
    """Read a PEFT LoRA folder as a finished adapter.

    Raises:
        StorageError: a file is missing.
        AdapterError: pickle weights, another adapter type, an option that is not plain LoRA, values that are not
            finite, or tensors that do not pair up.
    """
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder} holds adapter_model.bin, a pickle file, which can run code when it is opened; save it again "
            "with save_pretrained(..., safe_serialization=True) on a machine you trust"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{folder / CONFIG} says peft_type {kind!r}; only LORA adapters can be imported")
    for option in UNSUPPORTED:
        if config.get(option):
            raise AdapterError(f"{folder / CONFIG} sets {option}; only plain LoRA can be imported")
    tensors, _ = load_tensors(folder / WEIGHTS)
    return _from_tensors(tensors, config, folder)


def _from_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Adapter:
    modules: dict[str, Factors] = {}
    for key, A in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        B = tensors.get(key.replace("lora_A", "lora_B"))
        if B is None:
            raise AdapterError(f"{folder / WEIGHTS} has {key} but no matching lora_B; the file is incomplete")
        modules[name] = Factors(A, B * _scaling(name, A.shape[0], config))
    if not modules:
        raise AdapterError(
            f"{folder / WEIGHTS} holds no lora_A tensors; found {', '.join(list(tensors)[:3]) or 'none'}"
        )
    adapter = Adapter(modules)
    require_finite(dict(adapter.tensors()), str(folder / WEIGHTS))
    return adapter


def _scaling(name: str, rank: int, config: Mapping[str, Any]) -> float:
    alphas = config.get("alpha_pattern") or {}
    fitting = [float(value) for pattern, value in alphas.items() if name == pattern or name.endswith(f".{pattern}")]
    try:
        alpha = fitting[0] if fitting else float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"adapter_config.json has no usable lora_alpha: {json.dumps(dict(config))[:200]}") from error
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that an adapter's tensors hold no NaN or infinity.

    Raises:
        AdapterError: they do; the message names the first tensor.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{where}: tensor {name} holds NaN or infinity; the adapter is damaged - train it again")
