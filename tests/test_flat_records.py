"""Flat records: what is read is what was written, to the format's rounding, and damage never passes."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.errors import AdapterError
from mta.flat_records import DTYPES, Schema, check_record, read_record, schema_from_dict, schema_of, write_record

BASE = "ab" * 32


def drawn(*, rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (d_out, d_in) in {"layers.0.q_proj": (12, 9), "layers.0.v_proj": (6, 9)}.items():
        tensors[f"{name}.A"] = torch.randn(rank, d_in, generator=generator)
        tensors[f"{name}.B"] = torch.randn(d_out, rank, generator=generator) * torch.logspace(-3, 1, rank)
    return tensors | {"layers.0.q_proj.change": torch.randn(16, 16, generator=generator)}


@pytest.mark.parametrize("numbers", DTYPES)
def test_round_trip_to_the_format_s_rounding(numbers: str) -> None:
    tensors = drawn()
    schema = schema_of(tensors, base_fingerprint=BASE, numbers=numbers)  # type: ignore[arg-type]
    record = write_record(tensors, schema)
    assert len(record) == schema.record_bytes
    found = read_record(record, schema)
    assert list(found) == sorted(tensors)
    for name, value in tensors.items():
        # a rank is a row of A and a column of B; int8 is off by half a step of the rank's largest value
        across = 0 if name.endswith(".B") else 1
        largest = value.abs().amax(dim=across, keepdim=True)
        allowed = {"float32": 0 * value, "bfloat16": value.abs() / 256, "int8": largest / 127 / 2 * 1.0001 + 0 * value}
        assert bool(((found[name] - value).abs() <= allowed[numbers]).all()), name


def test_int8_gives_every_rank_its_own_scale() -> None:
    tensors = drawn()
    small = tensors["layers.0.q_proj.B"][:, 0]
    found = read_record(*_written(tensors, "int8"))["layers.0.q_proj.B"][:, 0]
    assert small.abs().max() < 0.01  # next to a rank a thousand times as large
    torch.testing.assert_close(found, small, rtol=0.01, atol=float(small.abs().max()) / 250)


def _written(tensors: dict[str, torch.Tensor], numbers: str) -> tuple[bytes, Schema]:
    schema = schema_of(tensors, base_fingerprint=BASE, numbers=numbers)  # type: ignore[arg-type]
    return write_record(tensors, schema), schema


@pytest.mark.parametrize("numbers", DTYPES)
def test_writing_what_was_read_gives_the_same_bytes(numbers: str) -> None:
    record, schema = _written(drawn(), numbers)
    assert write_record(read_record(record, schema), schema) == record


def test_zeros_and_empty_tensors() -> None:
    tensors = {"m.A": torch.zeros(2, 3), "m.B": torch.zeros(4, 2), "n.A": torch.zeros(0, 3), "s": torch.zeros(())}
    for numbers in DTYPES:
        found = read_record(*_written(tensors, numbers))
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            name: tuple(value.shape) for name, value in tensors.items()
        }
        assert all(bool((value == 0).all()) for value in found.values())


def test_half_the_bytes_and_a_quarter() -> None:
    tensors = drawn()
    values = sum(value.numel() for value in tensors.values())
    sizes = {numbers: len(_written(tensors, numbers)[0]) for numbers in DTYPES}
    assert sizes["float32"] - sizes["bfloat16"] == 2 * values
    assert sizes["bfloat16"] == 2 * values + 29
    assert sizes["int8"] == values + 4 * (4 + 4 + 4 + 4 + 16) + 29


@settings(max_examples=300)
@given(st.integers(0, 10**9))
def test_a_flipped_bit_never_passes(seed: int) -> None:
    record, schema = _written(drawn(rank=2), "bfloat16")
    place = random.Random(seed).randrange(8 * len(record))
    damaged = bytearray(record)
    damaged[place // 8] ^= 1 << place % 8
    with pytest.raises(AdapterError):
        read_record(bytes(damaged), schema)


@given(st.integers(0, 700))
def test_a_record_that_is_cut_off_never_passes(size: int) -> None:
    record, schema = _written(drawn(rank=2), "int8")
    with pytest.raises(AdapterError):
        read_record(record[: min(size, len(record) - 1)], schema)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_pass(junk: bytes) -> None:
    for record in (junk, b"MTAR" + junk):
        with pytest.raises(AdapterError):
            check_record(record)


def test_another_schema_is_refused() -> None:
    record, schema = _written(drawn(), "bfloat16")
    for other in (
        schema_of(drawn(), base_fingerprint="cd" * 32),
        schema_of(drawn(rank=2), base_fingerprint=BASE),
        schema_of(drawn(), base_fingerprint=BASE, numbers="int8"),
    ):
        with pytest.raises(AdapterError, match="another base model or with other settings"):
            read_record(record, other)
    assert check_record(record) == schema.identity


def test_what_cannot_be_written() -> None:
    tensors = drawn()
    schema = schema_of(tensors, base_fingerprint=BASE)
    with pytest.raises(AdapterError, match="not those of the schema"):
        write_record({**tensors, "more": torch.zeros(1)}, schema)
    tensors["layers.0.q_proj.A"][0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"layers\.0\.q_proj\.A: a value is not a finite number"):
        write_record(tensors, schema)
    with pytest.raises(AdapterError, match="wanted one of float32, bfloat16, int8"):
        schema_of(tensors, base_fingerprint=BASE, numbers="int4")  # type: ignore[arg-type]


def test_schema_as_json() -> None:
    schema = schema_of(drawn(), base_fingerprint=BASE)
    again = schema_from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert again.identity == schema.identity
    for change in ({"tensors": 3}, {"numbers": "int4"}, {"tensors": [["a"]]}):
        with pytest.raises(AdapterError):
            schema_from_dict({**schema.to_dict(), **change})
    with pytest.raises(AdapterError, match="not the schema"):
        schema_from_dict({})
