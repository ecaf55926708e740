"""Seeds that depend on names, not on order, process or machine."""

from __future__ import annotations

import hashlib


def stable_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed decided by `seed` and `names` alone (Python's own hash() changes per process)."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
