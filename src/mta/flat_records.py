"""A user's trained part as one flat run of bytes: numbers and a checksum, with all names and shapes written elsewhere.

What is the same for every user of one base model (which tensors there are, their shapes, the number format) is a
`Schema`, kept once; a record holds its identity and the values. A header of safetensors would take tens of kilobytes
for each user, more than a compact part itself.

Example:
    >>> schema = schema_of(tensors, base_fingerprint=base.fingerprint, numbers="bfloat16")
    >>> record = write_record(tensors, schema)
    >>> read_record(record, schema)["model.layers.0.self_attn.q_proj.A"].shape
    torch.Size([4, 576])
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.files import sha256_json

Numbers = Literal["float32", "bfloat16", "int8"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
LARGEST_INT8 = 127
"""-128 is left out, so that a value and its negative are stored alike."""

MAGIC = b"MTAR"
VERSION = 1
HEAD = struct.Struct("<4sB16sI")
"""Magic, version, identity of the schema, bytes of the payload; payload and checksum of all before follow."""
CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class Schema:
    """What all records of one kind have in common."""

    base_fingerprint: str
    """Of the base model that the tensors belong to."""
    numbers: Numbers
    """How values are stored; with int8 every rank of a factor has a scale of its own, in float32."""
    shapes: Mapping[str, tuple[int, ...]]
    """Name of a tensor -> its shape; tensors follow each other in this order."""

    @cached_property
    def identity(self) -> bytes:
        """16 bytes that a record of this schema carries."""
        return bytes.fromhex(sha256_json(self.to_dict()))[:16]

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes of the values, scales included."""
        width = DTYPES[self.numbers].itemsize
        values = sum(width * math.prod(shape) for shape in self.shapes.values())
        return values + (sum(4 * _scales(name, shape) for name, shape in self.shapes.items()) if self._scaled else 0)

    @property
    def record_bytes(self) -> int:
        """Bytes of a whole record."""
        return HEAD.size + self.payload_bytes + CHECKSUM.size

    @property
    def _scaled(self) -> bool:
        return self.numbers == "int8"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it; tensors as a list, since their order counts."""
        return {
            "base_fingerprint": self.base_fingerprint,
            "numbers": self.numbers,
            "tensors": [[name, list(shape)] for name, shape in self.shapes.items()],
        }


def schema_from_dict(values: Mapping[str, Any]) -> Schema:
    """Return the schema that `to_dict` wrote.

    Raises:
        AdapterError: it is not one.
    """
    try:
        shapes = {str(name): tuple(int(size) for size in shape) for name, shape in values["tensors"]}
        numbers, base = values["numbers"], str(values["base_fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"not the schema of stored adapters ({error!r}); was it written by this package?") from error
    return Schema(base, known_numbers(numbers), shapes)


def schema_of(tensors: Mapping[str, Tensor], *, base_fingerprint: str, numbers: Numbers = "bfloat16") -> Schema:
    """Return the schema of such tensors, in the order of their names."""
    return Schema(
        base_fingerprint, known_numbers(numbers), {name: tuple(tensors[name].shape) for name in sorted(tensors)}
    )


def known_numbers(numbers: str) -> Numbers:
    """Return the name of a number format.

    Raises:
        AdapterError: there is none of this name.
    """
    if numbers not in DTYPES:
        raise AdapterError(f"number format {numbers!r}; wanted one of {', '.join(DTYPES)}")
    return numbers  # type: ignore[return-value]


def write_record(tensors: Mapping[str, Tensor], schema: Schema) -> bytes:
    """Return the record of one user's tensors.

    Raises:
        AdapterError: they are not those of the schema, or a value is not finite.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(schema.shapes):
        odd = sorted(found.items() ^ schema.shapes.items())[0]
        raise AdapterError(f"these tensors are not those of the schema, for example {odd}; store them under their own")
    payload = b"".join(part for name in schema.shapes for part in _values(name, tensors[name], schema))
    record = HEAD.pack(MAGIC, VERSION, schema.identity, len(payload)) + payload
    return record + CHECKSUM.pack(zlib.crc32(record))


def _values(name: str, tensor: Tensor, schema: Schema) -> Iterator[bytes]:
    plain = tensor.detach().cpu().float()
    if not bool(plain.isfinite().all()):
        raise AdapterError(f"{name}: a value is not a finite number; the training diverged - use a lower learning rate")
    if schema.numbers == "int8":
        scales = _largest(name, plain) / LARGEST_INT8
        yield _bytes(scales)
        plain = (plain / _along(name, scales.clamp_min(torch.finfo(torch.float32).tiny), plain)).round()
    yield _bytes(plain.to(DTYPES[schema.numbers]))


def read_record(record: bytes, schema: Schema) -> dict[str, Tensor]:
    """Return the tensors of a record in float32.

    Raises:
        AdapterError: it is damaged, cut off, or of another schema.
    """
    identity = check_record(record)
    if identity != schema.identity:
        raise AdapterError(
            f"the record is of schema {identity.hex()}, this one is {schema.identity.hex()}; it was made for another "
            "base model or with other settings - read it with its own"
        )
    if len(record) != schema.record_bytes:
        raise AdapterError(f"the record has {len(record)} bytes, its schema asks for {schema.record_bytes}")
    reader = _Reader(record)
    return {name: _tensor(reader, name, shape, schema) for name, shape in schema.shapes.items()}


def check_record(record: bytes) -> bytes:
    """Return the identity of a record's schema.

    Raises:
        AdapterError: it is not a record, is cut off, or its contents do not match its checksum.
    """
    if len(record) < HEAD.size + CHECKSUM.size or not record.startswith(MAGIC):
        raise AdapterError("not the record of a stored adapter, or cut off; train the adapter again")
    _, version, identity, size = HEAD.unpack_from(record)
    if version != VERSION:
        raise AdapterError(f"the record is of version {version}, this package reads {VERSION}; update the package")
    body = memoryview(record)[: -CHECKSUM.size]
    if len(body) != HEAD.size + size or zlib.crc32(body) != CHECKSUM.unpack_from(record, len(body))[0]:
        raise AdapterError("the record of an adapter is damaged: its checksum does not match; train the adapter again")
    return bytes(identity)


class _Reader:
    """Takes one tensor after the other off a record's payload."""

    def __init__(self, record: bytes) -> None:
        self._record, self._at = bytearray(record), HEAD.size

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=torch.float32)
        # bytes are copied, since values of four bytes need not start at a multiple of four here
        raw = self._record[self._at : self._at + count * dtype.itemsize]
        self._at += len(raw)
        return torch.frombuffer(raw, dtype=dtype).float().view(shape)


def _tensor(reader: _Reader, name: str, shape: tuple[int, ...], schema: Schema) -> Tensor:
    if schema.numbers != "int8":
        return reader.take(shape, DTYPES[schema.numbers])
    scales = reader.take((_scales(name, shape),), torch.float32)
    values = reader.take(shape, torch.int8)
    return values * _along(name, scales, values)


def _rank_axis(name: str) -> int:
    """Return the axis of a factor along which its ranks lie: B is (d_out, r), all else (r, d)."""
    return 1 if name.endswith(".B") else 0


def _scales(name: str, shape: tuple[int, ...]) -> int:
    return shape[_rank_axis(name)] if len(shape) == 2 else 1


def _largest(name: str, values: Tensor) -> Tensor:
    """Return the largest absolute value of every rank, (r,); of tensors that are no matrix that of all, (1,)."""
    if values.dim() != 2:
        return values.abs().amax().view(1) if values.numel() else values.new_zeros(1)
    axis = _rank_axis(name)
    return values.abs().amax(dim=1 - axis) if values.numel() else values.new_zeros(values.shape[axis])


def _along(name: str, scales: Tensor, values: Tensor) -> Tensor:
    """Return the scales so that they multiply their ranks."""
    if values.dim() != 2:
        return scales.view([1] * values.dim())
    return scales.view(1, -1) if _rank_axis(name) else scales.view(-1, 1)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
