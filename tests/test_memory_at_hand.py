"""What a process holds and keeps, and what is free."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from mta import memory_at_hand
from mta.memory_at_hand import PassMemory, keep_freed_memory, peak_rss_bytes


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_rss_bytes()
    held = torch.ones(40_000_000, dtype=torch.float64)  # 320 MB
    after = peak_rss_bytes()
    assert before is not None
    assert after is not None
    assert after >= 320_000_000
    assert before < 1 << 40
    del held


FAULTS = """
import resource, torch
from mta.memory_at_hand import keep_freed_memory
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
from mta.memory_at_hand import hand_back_memory, keep_freed_memory, rss_bytes
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
    assert memory_at_hand._left_in_container(tmp_path) == wanted


def test_free_memory_is_what_the_system_has_or_the_container_leaves(monkeypatch):
    everything = memory_at_hand.free_bytes(torch.device("cpu"))
    assert everything > 1 << 20
    monkeypatch.setattr(memory_at_hand, "_left_in_container", lambda: [1000])
    assert memory_at_hand.free_bytes(torch.device("cpu")) == 1000


def test_freed_memory_is_handed_back_only_when_passes_have_left_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    held, handed = [100], []
    monkeypatch.setattr(memory_at_hand, "hand_back_memory", lambda: (handed.append(held[0]), held.__setitem__(0, 110)))
    memory = PassMemory(torch.device("cpu"), lambda: held[0])
    for now in (200, 205, 220):  # after the first pass 200 are held; up to 220 are borne
        held[0] = now
        memory.after_pass()
    assert handed == []
    assert PassMemory.holes(torch.device("cpu"), 200) == 20
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
    monkeypatch.setattr(memory_at_hand, "hand_back_memory", lambda: done.append("handed back"))
    memory = PassMemory(torch.device("cuda"), lambda: done.append("asked") or 0)
    memory.after_pass()
    memory.hand_back()
    assert done == []
    assert PassMemory.holes(torch.device("cuda"), 1000) == 0
