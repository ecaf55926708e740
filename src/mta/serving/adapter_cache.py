"""Adapters of people in memory, those used last, up to so many bytes.

Example:
    >>> cache = AdapterCache(most_bytes=2**28)
    >>> cache.put(user_id=7, revision=3, adapter=adapter)
    >>> cache.get(user_id=7, revision=3) is adapter
    True
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from mta.lora.adapter import Adapter


class AdapterCache:
    """One adapter a person, the least recently used going first. All methods may be called from any thread.

    Args:
        most_bytes: of all adapters together; a larger one is not kept.
    """

    def __init__(self, *, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[int, tuple[int, Adapter]] = OrderedDict()
        self._gone: set[int] = set()
        """Whose adapters must not come back; numbers of people are never given twice."""
        self._lock = threading.Lock()
        self.bytes = 0
        """Held now."""
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, *, user_id: int, revision: int) -> Adapter | None:
        """Return a person's adapter of this revision, if it is here."""
        with self._lock:
            found = self._kept.get(user_id)
            if found is None or found[0] != revision:
                self.misses += 1
                return None
            self._kept.move_to_end(user_id)
            self.hits += 1
            return found[1]

    def put(self, *, user_id: int, revision: int, adapter: Adapter) -> None:
        """Keep a person's adapter in place of an earlier revision; a later one stays, and who is forgotten stays so."""
        with self._lock:
            before = self._kept.get(user_id)
            if user_id in self._gone or (before and before[0] > revision):
                return
            self._drop(user_id)
            size = adapter_bytes(adapter)
            if size > self._most:
                return
            self._kept[user_id] = (revision, adapter)
            self.bytes += size
            while self.bytes > self._most:
                self._drop(next(iter(self._kept)))

    def count(self, user_id: int) -> int:
        """Return how many adapters of a person are here."""
        return int(user_id in self._kept)

    def forget(self, user_id: int) -> bool:
        """Let a person's adapter go for good; return whether there was one."""
        with self._lock:
            self._gone.add(user_id)
            return self._drop(user_id)

    def _drop(self, user_id: int) -> bool:
        gone = self._kept.pop(user_id, None)
        if gone is None:
            return False
        self.bytes -= adapter_bytes(gone[1])
        return True


def adapter_bytes(adapter: Adapter) -> int:
    """Return the bytes of an adapter's tensors."""
    return sum(tensor.nbytes for _, tensor in adapter.tensors())
