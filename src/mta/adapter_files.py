"""Finished adapters on disk: one checksummed safetensors file each, with a note of how it came about.

The note names the base model by fingerprint, so that an adapter is never applied to another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mta.base_model import BaseModel
from mta.errors import AdapterError
from mta.lora.adapter import Adapter, adapter_from_tensors
from mta.lora.peft_format import require_finite
from mta.tensor_files import load_tensors, save_tensors


def save_adapter(path: Path, adapter: Adapter, *, base: BaseModel, note: Mapping[str, Any]) -> None:
    """Write an adapter atomically, with the base model's name and fingerprint and a JSON note."""
    save_trained(path, dict(adapter.tensors()), base=base, note=note)


def save_trained(path: Path, tensors: Mapping[str, Tensor], *, base: BaseModel, note: Mapping[str, Any]) -> None:
    """Write what was trained on a base model atomically, with that model's name and fingerprint and a JSON note.

    Raises:
        AdapterError: a value is not finite.
    """
    require_finite(tensors, str(path))
    full = {**note, "base": base.name, "base_fingerprint": base.fingerprint}
    save_tensors(path, tensors, metadata={"note": json.dumps(full, sort_keys=True)})


def load_adapter(path: Path, *, base: BaseModel | None = None) -> tuple[Adapter, dict[str, Any]]:
    """Read an adapter and its note; see `load_trained`.

    Raises:
        AdapterError: also where the tensors are not those of an adapter.
    """
    tensors, note = load_trained(path, base=base)
    return adapter_from_tensors(tensors, where=str(path)), note


def load_trained(path: Path, *, base: BaseModel | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_trained` wrote: the tensors and the note.

    Args:
        path: the file.
        base: the model it will be applied to; None skips the check.

    Raises:
        StorageError: the file is missing.
        AdapterError: it is damaged, holds NaN, or was trained on another base model.
    """
    tensors, metadata = load_tensors(path)
    require_finite(tensors, str(path))
    note = _note(metadata.get("note", "{}"), path)
    if base is not None and note.get("base_fingerprint") != base.fingerprint:
        raise AdapterError(
            f"{path} was trained on base model {note.get('base')!r} (fingerprint "
            f"{str(note.get('base_fingerprint'))[:12]}), this is {base.name!r} ({base.fingerprint[:12]}); "
            "load the base model it was trained on, or train it again"
        )
    return tensors, note


def _note(text: str, path: Path) -> dict[str, Any]:
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise AdapterError(
            f"{path}: its note is not a JSON object; it was not written by this package - train it again"
        )
    return note
