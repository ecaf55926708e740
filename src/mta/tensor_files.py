"""Named tensors on disk: safetensors with a checksum of the contents, written atomically, never pickle.

Example:
    >>> save_tensors(Path("vectors.safetensors"), {"users": vectors}, metadata={"encoder": "minilm"})
    >>> tensors, metadata = load_tensors(Path("vectors.safetensors"))
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mta.errors import AdapterError, StorageError
from mta.files import PICKLE_SUFFIXES, atomic_path, sha256_json, storage_errors

CHECKSUM = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to `path` atomically, with a checksum over names, shapes, values and metadata."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = {**(metadata or {}), CHECKSUM: _file_checksum(plain, metadata or {})}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, str(temporary), metadata=note)
        except SafetensorError as error:  # wraps the operating system's error, for example a full disk
            raise StorageError(f"cannot write {path}: {error}; check the free space and the permissions") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; the checksum is verified where the file has one.

    Raises:
        StorageError: the file is missing or not readable.
        AdapterError: it is not safetensors, is cut off, or its contents do not match its checksum.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise AdapterError(
            f"{path} is a pickle file, which can run code when it is opened; convert it to safetensors on a machine "
            "you trust"
        )
    with _opened(path) as stream:
        metadata = dict(stream.metadata() or {})
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    wanted = metadata.pop(CHECKSUM, None)
    if wanted is not None and _file_checksum(tensors, metadata) != wanted:
        raise AdapterError(f"{path} is damaged: its contents do not match its checksum; make it again")
    return tensors, metadata


def count_values(path: Path) -> int:
    """Return how many numbers the tensors of a file hold, read from its header.

    Raises:
        StorageError: the file is missing or not readable.
        AdapterError: it is not safetensors.
    """
    with _opened(path) as stream:
        return sum(math.prod(stream.get_slice(name).get_shape()) for name in stream.keys())  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever goes wrong until it is closed is an error of this package."""
    _require_readable(path)
    try:
        with storage_errors(path, "read"), safe_open(str(path), framework="pt") as stream:
            yield stream
    except SafetensorError as error:
        raise AdapterError(
            f"{path} is not a readable safetensors file ({error}); it may be cut off - make it again"
        ) from error
    except (TypeError, ValueError) as error:  # a header that is no UTF-8, a shape torch cannot have
        raise AdapterError(f"{path} is damaged: its header is not readable ({error}); make it again") from error


def _require_readable(path: Path) -> None:
    """Say why a file cannot be read; `safe_open` would say of each that it is not there."""
    with storage_errors(path, "read"):
        if path.exists() and not path.is_file() and not path.is_dir():  # to open a pipe would wait for its writer
            raise StorageError(f"cannot read {path}: it is no regular file; name a file")
        with path.open("rb"):
            pass


def _file_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return sha256_json([tensors_checksum(tensors), dict(metadata)])


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, shapes, dtypes and values, independent of the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
