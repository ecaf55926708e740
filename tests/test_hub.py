"""Finding a model's folder: paths, hub ids, pickle weights, no network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from mta.errors import ModelError
from mta.hub import model_folder, require_safetensors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one repository of pickle weights on main and, if told so, a conversion in a pull request."""
    snapshots = tmp_path / "snapshots"
    state: dict[str, Any] = {"calls": [], "requests": [], "error": None, "main_files": ["config.json"]}

    def download(hub_id: str, *, revision: str | None, **options: Any) -> str:
        state["calls"].append((revision, options["local_files_only"]))
        if state["error"] is not None:
            raise state["error"]
        folder = snapshots / ("main" if revision is None else "converted")
        folder.mkdir(parents=True, exist_ok=True)
        for name in state["main_files"] if revision is None else ["config.json", "model.safetensors"]:
            (folder / name).write_text("")
        return str(folder)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", lambda *a, **k: iter(state["requests"]))
    return state


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_folder(str(tmp_path)) == tmp_path


def test_a_file_is_refused_with_the_folder_to_give(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        model_folder(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere/x", "~no-such-user/x", "a/b/c", "a b", ""])
def test_a_path_that_is_not_there_lists_the_short_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no such folder.*short name \(minilm\)"):
        model_folder(name, known=["minilm"])


def test_offline_the_hub_is_not_asked_and_the_message_says_so(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub["error"] = FileNotFoundError("not cached")
    with pytest.raises(ModelError, match=r"some/model is not on this machine.*HF_HUB_OFFLINE=1"):
        model_folder("some/model")
    assert hub["calls"] == [(None, True)]


def test_a_network_failure_keeps_its_reason(hub: dict[str, Any]) -> None:
    hub["error"] = OSError("no route to host")
    with pytest.raises(ModelError, match="cannot fetch model some/model: no route to host; check the network"):
        model_folder("some/model")


def test_safetensors_on_main_are_used(hub: dict[str, Any]) -> None:
    hub["main_files"] = ["config.json", "model.safetensors"]
    assert model_folder("some/model").name == "main"
    assert hub["calls"] == [(None, False)]


def test_pickle_weights_on_main_fall_back_to_the_bots_open_conversion(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["requests"] = [
        SimpleNamespace(status="closed", git_reference="refs/pr/1"),
        SimpleNamespace(status="open", git_reference="refs/pr/2"),
    ]
    assert model_folder("some/model").name == "converted"
    assert hub["calls"] == [(None, False), ("refs/pr/2", False)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder("some/model").name == "converted"  # the next time without a network
    assert hub["calls"][2:] == [(None, True)]


def test_pickle_weights_without_a_conversion_are_refused(hub: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"no safetensors weights on the hub.*save_pretrained"):
        model_folder("some/model")


def test_a_folder_of_pickle_weights_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors.*safe_serialization"):
        require_safetensors(tmp_path, "mine")
    (tmp_path / "model.safetensors").write_bytes(b"")
    require_safetensors(tmp_path, "mine")


def test_a_folder_without_any_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights"):
        require_safetensors(tmp_path, "mine")
