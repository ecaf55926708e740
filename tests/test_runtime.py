"""Device, number format, cache folder, versions, silence."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from mta.errors import ConfigError
from mta.runtime import cache_folder, choose_device, choose_dtype, is_offline, limit_threads, quiet_loading, versions


@pytest.mark.parametrize("found", [True, False])
def test_auto_takes_cuda_only_where_there_is_one(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose_device("auto").type == ("cuda" if found else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_cuda_without_a_gpu_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'cuda'.*0 CUDA devices.*cpu or auto"):
        choose_device("cuda")


def test_a_gpu_number_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cpu:0", "CUDA"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "device", "wanted"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("float64", "cpu", torch.float64),
    ],
)
def test_dtype_by_name_and_device(name: str, device: str, wanted: torch.dtype) -> None:
    assert choose_dtype(name, torch.device(device)) is wanted


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'float16'.*auto, float32, bfloat16, float64"):
        choose_dtype("float16", torch.device("cpu"))


def test_threads_are_limited() -> None:
    before = torch.get_num_threads()
    try:
        limit_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads is 0"):
        limit_threads(0)


def test_cache_folder_prefers_the_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MTA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("MTA_CACHE", "~/deep")
    assert cache_folder() == tmp_path / "deep"
    monkeypatch.setenv("MTA_CACHE", "~no-such-user/deep")
    with pytest.raises(ConfigError, match="no such home folder"):
        cache_folder()
    monkeypatch.setenv("MTA_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "mta"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "mta"
    assert list(tmp_path.iterdir()) == []


def test_versions_name_every_package_and_tell_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.runtime.VERSIONED", ("torch", "no-such-package-here"))
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] is not None
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["no-such-package-here"] is None


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_is_read_from_the_environment(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline


def test_quiet_loading_puts_the_settings_back_even_after_an_error() -> None:
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    bar = modeling_gguf_pytorch_utils.tqdm

    def settings() -> tuple[int, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    def load() -> None:
        with quiet_loading():
            assert settings() == (logging.ERROR, False)
            assert modeling_gguf_pytorch_utils.tqdm([1, 2], desc="bar") == [1, 2], "no bar is drawn"
            raise ZeroDivisionError

    verbosity, _ = settings()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with pytest.raises(ZeroDivisionError):
            load()
        assert settings() == (logging.INFO, True)
        assert modeling_gguf_pytorch_utils.tqdm is bar
    finally:
        logging.set_verbosity(verbosity)
