"""Memory at hand: what this process holds and keeps, what is free, and what to do where it does not suffice.

Knows nothing of models or users; what a training will take is foretold in `memory.py`.

Example:
    >>> keep_freed_memory()
    >>> rss_bytes()
    612343808
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from mta.errors import ModelError

T = TypeVar("T")
R = TypeVar("R")


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, instead of handing it back and asking for it again in every pass.

    With the C library's defaults, each training step's activations are returned to the system and come back page by
    page, which took a quarter of a step on one machine and nothing on another. The process then holds what it has freed
    until `hand_back_memory`. Does nothing where the C library is not GNU's.
    """
    library = _glibc()
    if library is None:
        return
    library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value the library takes
    library.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def hand_back_memory() -> None:
    """Hand all memory of this process that is free back to the system, also what lies between used pieces.

    What is taken again afterwards comes page by page. Does nothing where the C library is not GNU's.
    """
    if library := _glibc():
        library.malloc_trim(0)


class PassMemory:
    """Hands freed memory back between passes over packs on a CPU, but only when holes have made the process grow.

    Passes over packs of ever other sizes leave holes that the next one cannot use, and the process grows to twice what
    it needs; handing everything back after every pass takes time, as it comes back page by page. So what the process
    holds after a pass is compared with what it held after the first pass since memory was handed back last.

    Args:
        device: where the passes are; nothing is done for any but a CPU.
        held: what tells the bytes held by this process.
    """

    SLACK = 1.1
    """How much more than after the largest of such first passes may be held, of all that the process holds."""

    def __init__(self, device: torch.device, held: Callable[[], int] | None = None) -> None:
        self._held = held or rss_bytes
        self._watches = device.type == "cpu"
        self._needed = 0
        self._fresh = True

    @classmethod
    def holes(cls, device: torch.device, used: int) -> int:
        """Return about how many bytes lie unused between so many used ones before they are handed back."""
        return round((cls.SLACK - 1) * used) if device.type == "cpu" else 0

    def after_pass(self) -> None:
        """Look at what is held, and hand back what is too much."""
        if not self._watches:
            return
        held = self._held()
        if self._fresh:
            self._needed, self._fresh = max(self._needed, held), False
        elif held > self.SLACK * self._needed:
            self.hand_back()

    def hand_back(self) -> None:
        """Hand back all that is free; whatever is needed next takes it anew."""
        if self._watches:
            hand_back_memory()
            self._fresh = True


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1
"""mallopt's names for its settings, from malloc.h, and the largest value of a C int."""


def halve_until_it_fits(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], *, what: str) -> list[R]:
    """Do work on items together, or in halves of halves where a GPU's memory does not suffice for all of them.

    Args:
        work: items -> one result each, in order; called again for parts of what it failed on.
        items: what to do.
        what: what an item is, for the error.

    Raises:
        ModelError: not even one item fits.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise out_of_memory(what) from error
    release_memory()  # out here, where the failed attempt's tensors are gone
    middle = len(items) // 2
    return [done for part in (items[:middle], items[middle:]) for done in halve_until_it_fits(work, part, what=what)]


def out_of_memory(what: str) -> ModelError:
    """Return the error of something that does not fit into a GPU's memory, with what is free and what there is."""
    numbers = ""
    if torch.cuda.is_available():
        free, there = (value / 2**30 for value in torch.cuda.mem_get_info())
        numbers = f" ({free:.1f} GiB of {there:.1f} are free)"
    return ModelError(
        f"the memory of the device does not suffice for {what}{numbers}; take shorter prompts (--max-tokens), a "
        "smaller number format (--dtype bfloat16), a smaller base model or a larger device"
    )


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn running out of a GPU's memory inside the block into an error that says for what.

    Raises:
        ModelError: it did.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(what) from error


def release_memory() -> None:
    """Hand the GPU memory that nothing uses back, so that larger or smaller pieces fit into it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_rss_bytes() -> int | None:
    """Return the most memory this process has held so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int:
    """Return the memory this process holds now, in bytes."""
    import psutil

    held: int = psutil.Process().memory_info().rss
    return held


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that this process could still take, in bytes.

    Of main memory that is what the system has and what the control groups of a container leave.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil

    available: int = psutil.virtual_memory().available
    return min([available, *_left_in_container()])


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the bytes that a container's limit leaves, [] where there is none; file caches can be given up."""
    for limit, used, stat, cache in [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ]:
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            lines = [line.split() for line in (folder / stat).read_text().splitlines()]
        except (OSError, ValueError):  # no such group, or "max"
            continue
        return [most - now + sum(int(line[1]) for line in lines if line[0] == cache)]
    return []
