"""A bank on disk: what goes in comes out, and whatever is damaged is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import random_adapter, tiny_base
from mta.bank import (
    ADAPTERS,
    MANIFEST,
    POPULATION,
    SEAL,
    VECTORS,
    history_fingerprint,
    load_bank,
    retire_anchor,
    stack_adapters,
    unstack_adapters,
    write_bank,
)
from mta.errors import BankError, DataError, NotFound, StorageError
from mta.files import read_json, sha256_json, write_json
from mta.tensor_files import load_tensors, save_tensors, tensors_checksum
from small_world import flip_bit, invented_bank, person, same_bank

FILES = (MANIFEST, ADAPTERS, VECTORS, POPULATION)


@pytest.mark.parametrize("shared_a", [False, True])
@pytest.mark.parametrize("population", [False, True])
def test_what_is_written_is_what_is_loaded(tmp_path: Path, shared_a: bool, population: bool) -> None:
    base = tiny_base(torch.float32)
    bank = invented_bank(tmp_path, base=base, shared_a=shared_a, population=population)
    assert same_bank(load_bank(tmp_path, base=base), bank)
    assert (bank.population is not None) == population
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - ({POPULATION} if not population else set())


def test_manifest_says_what_decided_the_bank(tmp_path: Path) -> None:
    bank = invented_bank(tmp_path)
    manifest = read_json(tmp_path / MANIFEST)
    assert (manifest["task"], manifest["asked"], manifest["kept"], manifest["train_seconds"]) == ("own", 4, 3, 1.5)
    assert manifest["base"] == {"name": "tiny", "fingerprint": bank.base_fingerprint}
    assert manifest["config"]["train"]["rank"] == 2
    assert [anchor["user_id"] for anchor in manifest["anchors"]] == ["anchor/0", "anchor/1", "anchor/2"]
    assert "torch" in manifest["versions"]


def test_one_A_is_kept_where_all_are_equal(tmp_path: Path) -> None:
    apart, shared = invented_bank(tmp_path / "apart"), invented_bank(tmp_path / "shared", shared_a=True)
    stacked = load_tensors(tmp_path / "shared" / ADAPTERS)[0]
    assert all(tensor.shape[0] == (1 if name.endswith(".A") else 3) for name, tensor in stacked.items())
    values = sum(tensor.numel() for tensor in stacked.values())
    every = sum(adapter.parameters for adapter in apart.adapters.values())
    of_a = sum(factors.A.numel() for factors in shared.adapters["anchor/0"].modules.values())
    assert values == every - 2 * of_a
    sizes = [(tmp_path / name / ADAPTERS).stat().st_size for name in ("shared", "apart")]
    assert sizes[0] < sizes[1]


def test_stacking_is_undone_exactly() -> None:
    base = tiny_base(torch.float32)
    adapters = [random_adapter(base, ("q_proj", "down_proj"), seed=seed) for seed in range(5)]
    again = unstack_adapters(stack_adapters(adapters), len(adapters))
    assert [one.fingerprint() for one in again] == [one.fingerprint() for one in adapters]


# damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "whole"
    invented_bank(folder, population=True)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(whole: Path, tmp_path: Path, name: str) -> None:
    """A flip may be harmless (1e-08 to 1E-08, or in the checksum's own name): then all is equal."""
    path = tmp_path / name
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    wanted, sound = load_bank(tmp_path), path.read_bytes()
    noticed = 0
    for place in range(0, len(sound), max(1, len(sound) // 80)):
        flip_bit(path, place=place, bit=place % 8)
        try:
            assert same_bank(load_bank(tmp_path), wanted), f"byte {place} of {name} changed the bank unnoticed"
        except BankError as error:
            noticed += 1
            assert name in str(error)  # noqa: PT017 - the message is judged only where there is one
        path.write_bytes(sound)
    assert noticed > 70


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, -1])
def test_a_cut_off_file_is_named(whole: Path, tmp_path: Path, name: str, left: float) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    data = (tmp_path / name).read_bytes()
    kept = data[: int(len(data) * left)] if left >= 0 else data[:-3]
    (tmp_path / name).write_bytes(kept)
    with pytest.raises(BankError, match=name):
        load_bank(tmp_path)


@pytest.mark.parametrize("name", [ADAPTERS, VECTORS, POPULATION])
def test_a_missing_tensor_file_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(BankError, match=name):
        load_bank(tmp_path)


def test_a_folder_without_a_manifest_is_no_bank(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=MANIFEST):
        load_bank(tmp_path)


@pytest.mark.parametrize("name", [ADAPTERS, VECTORS, POPULATION])
def test_files_of_another_bank_are_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "mine")
    invented_bank(tmp_path / "other", seed=500, population=True)
    load_bank(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, tmp_path / "mine" / name)
    with pytest.raises(BankError, match=rf"{name} does not belong to"):
        load_bank(tmp_path / "mine")


@pytest.mark.parametrize("name", [ADAPTERS, VECTORS, POPULATION])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_even_with_right_checksums(
    whole: Path, tmp_path: Path, name: str, value: float
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    tensors, _ = load_tensors(tmp_path / name)
    first = next(iter(tensors))
    tensors[first].view(-1)[0] = value
    save_tensors(tmp_path / name, tensors)
    edit_manifest(tmp_path, files={**read_json(tmp_path / MANIFEST)["files"], name: tensors_checksum(tensors)})
    with pytest.raises(BankError, match=rf"{name}: tensor .* NaN or infinity"):
        load_bank(tmp_path)


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change the manifest as a careful forger would, with its own checksum made anew."""
    content = {**read_json(folder / MANIFEST), **changes}
    content.pop(SEAL)
    write_json(folder / MANIFEST, {**content, SEAL: sha256_json(content)})


@pytest.mark.parametrize("schema", [2, 0, None, "1"])
def test_another_schema_is_refused(whole: Path, tmp_path: Path, schema: object) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    edit_manifest(tmp_path, schema=schema)
    with pytest.raises(BankError, match=rf"{MANIFEST} has schema {schema!r}, this version reads 1"):
        load_bank(tmp_path)


def test_a_bank_that_does_not_say_what_its_population_adapter_took_is_of_an_earlier_version(tmp_path: Path) -> None:
    invented_bank(tmp_path, population=True)
    edit_manifest(tmp_path, population={"updates": 12, "tokens": 345})
    loaded = load_bank(tmp_path)
    assert (loaded.population_updates, loaded.population_tokens) == (12, 345)
    edit_manifest(tmp_path, population=None)
    with pytest.raises(BankError, match=r"is of an earlier version, which did not keep .*; build it again"):
        load_bank(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"schema": 1}', '"text"'])
def test_a_manifest_of_the_wrong_kind_is_refused(whole: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BankError, match=MANIFEST):
        load_bank(tmp_path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("anchors", [{"user_id": "ann"}]),
        ("anchors", []),
        ("config", {"no": "such field"}),
        ("config", {"train": {"rank": "eight"}}),
        ("files", {}),
        ("task", "no-such-task"),
        ("task", ["own"]),
        ("base", {}),
        ("train_seconds", 10**400),
    ],
)
def test_a_manifest_that_does_not_fit_the_files_is_refused(
    whole: Path, tmp_path: Path, part: str, value: object
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    edit_manifest(tmp_path, **{part: value})
    with pytest.raises(BankError, match="is damaged"):
        load_bank(tmp_path)


def test_a_base_model_of_no_name_is_another_one(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    edit_manifest(tmp_path, base={"name": None, "fingerprint": 2.5})
    with pytest.raises(BankError, match="trained on base model None"):
        load_bank(tmp_path, base=tiny_base(torch.float32))


def test_an_edited_manifest_is_noticed(whole: Path, tmp_path: Path) -> None:
    """Two anchors' names exchanged would give everybody the wrong adapter."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / MANIFEST).read_text()
    swapped = text.replace("anchor/0", "x").replace("anchor/1", "anchor/0").replace('"x"', '"anchor/1"')
    assert json.loads(swapped)["anchors"][0]["user_id"] == "anchor/1"
    (tmp_path / MANIFEST).write_text(swapped)
    with pytest.raises(BankError, match="was edited"):
        load_bank(tmp_path)


def test_another_base_model_is_refused_with_both_names(whole: Path) -> None:
    other = replace(tiny_base(torch.float32, seed=1), name="somebody-else")
    with pytest.raises(BankError, match=r"trained on base model 'tiny' .* this is 'somebody-else'"):
        load_bank(whole, base=other)
    assert load_bank(whole, base=tiny_base(torch.bfloat16)).base_name == "tiny"  # another number format is the same one
    assert load_bank(whole).base_name == "tiny"


# life cycle -------------------------------------------------------------------------------------------------------


def test_a_retired_anchor_is_no_longer_matched_but_stays(tmp_path: Path) -> None:
    bank = invented_bank(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in (ADAPTERS, VECTORS)}
    left = retire_anchor(bank, "anchor/1")
    assert left.anchor_ids == ("anchor/0", "anchor/2")
    assert torch.equal(left.active_vectors, bank.vectors[[0, 2]])
    assert left.adapter("anchor/1").fingerprint() == bank.adapter("anchor/1").fingerprint()
    assert same_bank(load_bank(tmp_path), left)
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    assert bank.anchor_ids == ("anchor/0", "anchor/1", "anchor/2"), "the value given stays as it was"


def test_retiring_twice_changes_nothing_more(tmp_path: Path) -> None:
    left = retire_anchor(invented_bank(tmp_path), "anchor/1")
    assert retire_anchor(left, "anchor/1").anchor_ids == left.anchor_ids


def test_the_last_anchor_and_unknown_ones_cannot_be_retired(tmp_path: Path) -> None:
    bank = invented_bank(tmp_path, anchors=2)
    with pytest.raises(NotFound, match="no anchor 'zoe'; its anchors: anchor/0, anchor/1"):
        retire_anchor(bank, "zoe")
    left = retire_anchor(bank, "anchor/0")
    with pytest.raises(BankError, match="the last anchor"):
        retire_anchor(left, "anchor/1")
    assert load_bank(tmp_path).anchor_ids == ("anchor/1",)


def test_writing_over_a_bank_leaves_a_whole_bank(tmp_path: Path) -> None:
    invented_bank(tmp_path, seed=1, population=True)
    second = invented_bank(tmp_path, seed=2)
    assert same_bank(load_bank(tmp_path), second), "the first bank's population file must not come back"
    write_bank(second, build_fingerprint="again", dropped=())
    assert same_bank(load_bank(tmp_path), second)


# who may be a target ----------------------------------------------------------------------------------------------


def test_an_anchor_is_no_target_by_id_or_by_history_nor_when_retired(tmp_path: Path) -> None:
    bank = invented_bank(tmp_path)
    twin = person("twin", items=6)
    anchors = (replace(bank.anchors[0], data_fingerprint=history_fingerprint(twin)), *bank.anchors[1:])
    bank = replace(bank, anchors=anchors)
    bank.check_targets([person("ann"), person("twin", items=5)])
    for left in (bank, retire_anchor(bank, "anchor/0")):
        with pytest.raises(DataError, match=r"1 of 2 target users are anchors .*\('twin' = anchor 'anchor/0'\)"):
            left.check_targets([person("ann"), twin])
        with pytest.raises(DataError, match=r"\('anchor/0' = anchor 'anchor/0'\)"):
            left.check_targets([person("anchor/0")])
    with pytest.raises(DataError, match="2 of 2 target users"):
        bank.check_targets([person("anchor/1"), person("anchor/2")])
