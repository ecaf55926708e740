"""Tensors on disk: exact, whole, safe to open."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers import random_adapter, tiny_base
from mta.adapter_files import load_adapter, save_adapter
from mta.config import QUERY_VALUE
from mta.errors import AdapterError, StorageError
from mta.lora.adapter import Adapter, Factors, adapter_from_tensors
from mta.tensor_files import count_values, load_tensors, save_tensors, tensors_checksum
from permissions import permissions_count
from small_world import flip_bit

KINDS = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.bool]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_what_is_saved_is_loaded_exactly(tmp_path: Path, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.randn(shape) * 3).to(kind)
    save_tensors(tmp_path / "a.safetensors", {"value": value, "other": torch.ones(2)}, metadata={"who": "ä ☃"})
    tensors, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"who": "ä ☃"}
    assert sorted(tensors) == ["other", "value"]
    assert tensors["value"].dtype == kind
    assert torch.equal(tensors["value"], value)


def test_views_and_values_out_of_order_are_saved_as_they_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    views = {"transposed": whole.T, "row": whole[1].clone(), "odd": whole[:, ::2], "late": whole[2]}
    save_tensors(tmp_path / "a.safetensors", views)
    tensors, _ = load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], views[name]) for name in views)


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.tensor([float("nan"), float("inf"), -0.0])})
    (x,) = load_tensors(tmp_path / "a.safetensors")[0].values()
    assert str(x.tolist()) == "[nan, inf, -0.0]"


# checksums --------------------------------------------------------------------------------------------------------


def test_a_checksum_sees_names_shapes_kinds_and_values_but_not_order() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    sums = {
        tensors_checksum(tensors)
        for tensors in (
            {"a": a, "b": b},
            {"b": a, "a": b},
            {"a": a.view(2, 3), "b": b},
            {"a": a.double(), "b": b},
            {"a": a.int(), "b": b},
            {"a": -a, "b": b},
            {"a": a},
            {},
        )
    }
    assert len(sums) == 8
    assert tensors_checksum({"b": b, "a": a}) == tensors_checksum({"a": a, "b": b})
    assert tensors_checksum({"a": torch.arange(12.0)[::2] / 2, "b": b}) == tensors_checksum({"a": a, "b": b})


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.safetensors"
    tensors = {"x": torch.arange(8.0), "y": torch.zeros(3, dtype=torch.bfloat16)}
    save_tensors(path, tensors, metadata={"step": "17"})
    name = path.read_bytes().index(b'"sha256"')  # the checksum's own name: without it nothing is checked, nor amiss
    places = [place for place in range(path.stat().st_size) if not name <= place <= name + 7]
    flip_bit(path, place=data.draw(st.sampled_from(places)), bit=data.draw(st.integers(0, 7)))
    with pytest.raises(AdapterError, match=r"a\.safetensors"):
        load_tensors(path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
def test_a_cut_off_file_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(8.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AdapterError, match="cut off"):
        load_tensors(path)


def test_values_are_counted_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.zeros(2, 3), "y": torch.zeros((), dtype=torch.bfloat16), "none": torch.zeros(0, 4)})
    assert count_values(path) == 7
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AdapterError, match="not a readable"):
        count_values(path)
    for missing in (tmp_path / "b.safetensors", tmp_path):
        with pytest.raises(StorageError, match=str(missing)):
            count_values(missing)


def test_a_file_of_another_program_needs_no_checksum(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    tensors, metadata = load_tensors(tmp_path / "a.safetensors")
    assert (tensors["x"].tolist(), metadata) == ([1.0, 1.0], {"format": "pt"})


# safe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter.bin", "a.pt", "a.pth", "a.ckpt"])
def test_pickles_are_refused_without_being_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(AdapterError, match="pickle file"):
        load_tensors(tmp_path / name)


READERS: list[Callable[[Path], Any]] = [load_tensors, count_values]


@pytest.mark.parametrize("read", READERS)
def test_files_that_cannot_be_read_are_named_with_the_true_reason(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for unreadable, reason in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "dangling", "No such file"),
        (path / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path, "Is a directory.* give the file in it"),
        (tmp_path / "pipe", "no regular file"),
    ):
        with pytest.raises(StorageError, match=f"cannot read {unreadable}: .*{reason}"):
            read(unreadable)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("locked", ["a.safetensors", "."])
def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(
    tmp_path: Path, read: Callable[[Path], Any], locked: str
) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})
    place = path.parent / locked
    before = place.stat().st_mode
    place.chmod(0o000)
    try:
        with permissions_count(), pytest.raises(StorageError, match=f"cannot read {path}: Permission denied"):
            read(path)
    finally:
        place.chmod(before)


@pytest.mark.parametrize("read", READERS)
def test_an_error_of_the_system_while_a_file_is_open_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})
    monkeypatch.setattr("mta.tensor_files.safe_open", broken)
    with pytest.raises(StorageError, match=f"cannot read {path}: Input/output error"):
        read(path)


def test_a_shape_that_no_tensor_can_have_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(AdapterError, match="header is not readable"):
        load_tensors(tmp_path / "a.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})

    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mta.tensor_files.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        save_tensors(path, {"x": torch.zeros(2)})
    assert load_tensors(path)[0]["x"].tolist() == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["a.safetensors"]


# adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_with_its_note_and_knows_its_base_model(tmp_path: Path) -> None:
    base, other = tiny_base(torch.float32), tiny_base(torch.float32, seed=1)
    adapter = random_adapter(base, QUERY_VALUE, seed=1)
    save_adapter(tmp_path / "a.safetensors", adapter, base=base, note={"updates": 3})
    loaded, note = load_adapter(tmp_path / "a.safetensors", base=base)
    assert loaded.fingerprint() == adapter.fingerprint()
    assert note == {"updates": 3, "base": "tiny", "base_fingerprint": base.fingerprint}
    with pytest.raises(AdapterError, match=r"trained on base model 'tiny' .* this is 'tiny'"):
        load_adapter(tmp_path / "a.safetensors", base=other)
    assert load_adapter(tmp_path / "a.safetensors")[1] == note


def test_an_adapter_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    base = tiny_base(torch.float32)
    bad = Adapter({"q": Factors(torch.full((1, 2), float("nan")), torch.ones(2, 1))})
    with pytest.raises(AdapterError, match=r"q\.A holds NaN"):
        save_adapter(tmp_path / "a.safetensors", bad, base=base, note={})
    assert not (tmp_path / "a.safetensors").exists()
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        save_tensors(tmp_path / "a.safetensors", {name: tensor.to(dtype) for name, tensor in bad.tensors()})
        with pytest.raises(AdapterError, match=r"q\.A holds NaN"):
            load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("note", ["", "{", "[]", "7", "[" * 100_000, "1" * 5000])
def test_a_note_that_is_no_object_is_refused(tmp_path: Path, note: str) -> None:
    tensors = {"q.A": torch.ones(1, 2), "q.B": torch.ones(2, 1)}
    save_tensors(tmp_path / "a.safetensors", tensors, metadata={"note": note})
    with pytest.raises(AdapterError, match="its note is not a JSON object"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("names", [["q.A"], ["q.B"], ["q.A", "v.B"], ["q.A", "q.B", "q.C"], ["x"]])
def test_factors_without_a_partner_are_refused(names: list[str]) -> None:
    with pytest.raises(AdapterError, match=r"here: tensor .* has no partner"):
        adapter_from_tensors({name: torch.ones(2, 2) for name in names}, where="here")


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AdapterError, match="wanted A"):
        adapter_from_tensors({"q.A": torch.ones(2, 3), "q.B": torch.ones(4, 5)}, where="here")
