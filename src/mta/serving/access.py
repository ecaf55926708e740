"""Who may use the server, and how much of it: keys, tenants, rate limits.

Example:
    >>> gate = Gate(database, open_to=None, requests_per_minute=6000)
    >>> gate.tenant("Bearer mta-...").name
    'acme'
"""

from __future__ import annotations

import threading
import time

from mta.errors import MtaError
from mta.serving.database import Database
from mta.serving.tenants import Tenant, tenant_of_key


class NotAllowed(MtaError):
    """No key, or nobody's."""


class TooMany(MtaError):
    """A tenant asks more often than agreed."""

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Gate:
    """Finds the tenant of a request. Methods may be called from any thread.

    Args:
        database: where keys are.
        open_to: whom requests without a key belong to; None refuses them.
        requests_per_minute: of one tenant; as many may come at once.
    """

    def __init__(self, database: Database, *, open_to: Tenant | None, requests_per_minute: int) -> None:
        self._database, self._open_to = database, open_to
        self._rate = requests_per_minute / 60
        self._most = float(requests_per_minute)
        self._left: dict[int, tuple[float, float]] = {}
        """Tenant -> (requests left, when that was)."""
        self._lock = threading.Lock()

    @property
    def needs_keys(self) -> bool:
        """Whether requests without a key are refused."""
        return self._open_to is None

    def tenant(self, authorization: str | None) -> Tenant:
        """Return whose request it is, by its Authorization header.

        Raises:
            NotAllowed: the key is missing or nobody's.
            TooMany: the tenant has asked too often.
        """
        tenant = self._tenant(authorization)
        wait = self._spend(tenant)
        if wait > 0:
            raise TooMany(f"more than {self._most:.0f} requests a minute; wait {wait:.1f} seconds", wait_s=wait)
        return tenant

    def _tenant(self, authorization: str | None) -> Tenant:
        if authorization is None and self._open_to is not None:
            return self._open_to
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise NotAllowed("no API key; send the header Authorization: Bearer KEY (mta keys add makes one)")
        found = tenant_of_key(self._database, key.strip())
        if found is None and self._open_to is not None:
            return self._open_to  # clients of this API insist on sending some key
        if found is None:
            raise NotAllowed("this API key is not known; mta keys list says which there are")
        return found

    def _spend(self, tenant: Tenant) -> float:
        """Take one request off what a tenant has left; return how long to wait where there is none."""
        now = time.monotonic()
        with self._lock:
            left, then = self._left.get(tenant.id, (self._most, now))
            left = min(self._most, left + (now - then) * self._rate)
            enough = left >= 1
            self._left[tenant.id] = (left - enough, now)
        return 0.0 if enough else (1 - left) / self._rate
