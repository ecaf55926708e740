"""Making permissions hold in a test that is run by root, who ignores them otherwise."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CAPABILITY_VERSION = 0x20080522
OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores permissions."""


class Capabilities:
    """The three sets of this thread, as capget(2) gives them."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        self.sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; once more for the higher half
        self._call("capget")

    def _call(self, name: str) -> None:
        if getattr(self.libc, name)(self.head, self.sets):
            raise OSError(ctypes.get_errno(), f"{name} failed")

    @contextmanager
    def without(self, bits: int) -> Iterator[None]:
        before = self.sets[0]
        self.sets[0] = before & ~bits
        self._call("capset")
        try:
            yield
        finally:
            self.sets[0] = before
            self._call("capset")


@contextmanager
def permissions_count() -> Iterator[None]:
    """Make permissions hold for this thread even if it is root's."""
    if os.geteuid() != 0:
        yield
        return
    try:
        capabilities = Capabilities()
    except (AttributeError, OSError):
        pytest.skip("root ignores permissions, and this system has no way to give that up for a moment")
    with capabilities.without(OVERRIDES):
        yield
