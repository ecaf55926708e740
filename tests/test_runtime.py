"""Device, number format, cache folder, versions, silence."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mta import runtime
from mta.errors import ConfigError
from mta.runtime import (
    PassMemory,
    cache_folder,
    choose_device,
    choose_dtype,
    is_offline,
    keep_freed_memory,
    limit_threads,
    peak_rss_bytes,
    quiet_loading,
    versions,
)


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


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_rss_bytes()
    held = torch.ones(40_000_000, dtype=torch.float64)  # 320 MB
    after = peak_rss_bytes()
    assert before is not None
    assert after is not None
    assert after >= 320_000_000
    assert before < 1 << 40
    del held


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


FAULTS = """
import resource, torch
from mta.runtime import keep_freed_memory
if {keep}: keep_freed_memory()
def touch():
    held = [torch.ones(1_000_000) for _ in range(20)]
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no such setting")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    def page_faults(keep: bool) -> int:
        run = [sys.executable, "-c", FAULTS.format(keep=keep)]
        return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

    assert page_faults(keep=True) < page_faults(keep=False) / 2
    keep_freed_memory()
    assert torch.ones(1_000_000).sum() == 1_000_000


KEPT_AND_HANDED_BACK = """
import torch
from mta.runtime import hand_back_memory, keep_freed_memory, rss_bytes
keep_freed_memory()
blocks = [torch.ones(25_000 + 7 * n) for n in range(1500)]
pins = blocks[::50]
held = rss_bytes()
del blocks
kept = rss_bytes()
hand_back_memory()
print(held, kept, rss_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's C library is asked")
def test_memory_is_kept_until_it_is_handed_back() -> None:
    """150 MB are freed, but for a block here and there, as after a pass over a pack."""
    done = subprocess.run([sys.executable, "-c", KEPT_AND_HANDED_BACK], capture_output=True, text=True, check=True)
    held, kept, left = map(int, done.stdout.split())
    assert held - kept < 20e6
    assert kept - left > 100e6


V2 = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 500\ninactive_file 150\n"}
V1 = {
    "memory/memory.limit_in_bytes": "1000",
    "memory/memory.usage_in_bytes": "800",
    "memory/memory.stat": "cache 300\ntotal_inactive_file 50\n",
}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [(V2, [450]), (V1, [250]), ({**V2, "memory.max": "max"}, []), ({}, [])],
    ids=["version 2", "version 1", "no limit", "no group"],
)
def test_what_a_containers_limit_leaves(tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert runtime._left_in_container(tmp_path) == wanted


def test_free_memory_is_what_the_system_has_or_the_container_leaves(monkeypatch):
    everything = runtime.free_bytes(torch.device("cpu"))
    assert everything > 1 << 20
    monkeypatch.setattr(runtime, "_left_in_container", lambda: [1000])
    assert runtime.free_bytes(torch.device("cpu")) == 1000


def test_freed_memory_is_handed_back_only_when_passes_have_left_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    held, handed = [100], []
    monkeypatch.setattr("mta.runtime.hand_back_memory", lambda: (handed.append(held[0]), held.__setitem__(0, 110)))
    memory = PassMemory(torch.device("cpu"), lambda: held[0])
    for now in (200, 205, 220):  # after the first pass 200 are held; up to 220 are borne
        held[0] = now
        memory.after_pass()
    assert handed == []
    held[0] = 221
    memory.after_pass()
    assert (handed, held) == ([221], [110])
    held[0] = 300  # a larger pass, on memory that has no holes
    memory.after_pass()
    held[0] = 330
    memory.after_pass()
    assert handed == [221]
    held[0] = 331
    memory.after_pass()
    assert handed == [221, 331]


def test_nothing_is_asked_or_handed_back_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("mta.runtime.hand_back_memory", lambda: done.append("handed back"))
    memory = PassMemory(torch.device("cuda"), lambda: done.append("asked") or 0)
    memory.after_pass()
    memory.hand_back()
    assert done == []
