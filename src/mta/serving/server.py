"""A server without its HTTP: the model, the people, the thread that answers and the one that adapts.

Example:
    >>> with Server(people, database, config=ServeConfig(), adapt=TrainConfig()) as server:
    ...     app = make_app(server)
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from mta.config import TrainConfig
from mta.serving.access import Gate
from mta.serving.adaptation_worker import AdaptationWorker
from mta.serving.database import Database
from mta.serving.decoder import Decoder
from mta.serving.job_store import JobStore
from mta.serving.people import People
from mta.serving.request_queue import RequestQueue
from mta.serving.settings import ServeConfig
from mta.serving.tenants import ensure_tenant
from mta.serving.user_store import StoredUser

DEFAULT_TENANT = "default"
"""Whose requests without a key are, where keys are not asked for."""
TURN_S = 0.01
"""How often adaptation looks whether requests are done."""


class Server:
    """What all parts of the API share.

    Args:
        people: the people and what answers them.
        database: where they are.
        config: settings.
        adapt: settings of adaptation.
        open_to_all: whether requests without a key are served, as those of one tenant.
    """

    def __init__(
        self, people: People, database: Database, *, config: ServeConfig, adapt: TrainConfig, open_to_all: bool
    ) -> None:
        self.people, self.database, self.config = people, database, config
        self.store, self.jobs = people.store, JobStore(database)
        self.queue = RequestQueue(most=config.most_waiting, most_each=config.most_waiting_each)
        self.decoder = Decoder(people.base, self.queue, most_rows=config.most_rows, most_tokens=config.most_tokens)
        self.worker = AdaptationWorker(people, self.jobs, adapt=adapt, wait_for_turn=self._wait_for_turn)
        self.gate = Gate(
            database,
            open_to=ensure_tenant(database, DEFAULT_TENANT) if open_to_all else None,
            requests_per_minute=config.requests_per_minute,
        )
        self.started = time.time()
        self._stopping = threading.Event()

    def _wait_for_turn(self) -> None:
        """Return when nobody waits for an answer, or patience ends."""
        until = time.monotonic() + self.config.adapt_patience_s
        while self.decoder.busy and time.monotonic() < until:
            self._stopping.wait(TURN_S)

    def delete(self, user: StoredUser) -> dict[str, int]:
        """Delete a person from the store and from memory; see `UserStore.delete_user`."""
        removed = self.store.delete_user(user)
        return {**removed, "adapters in memory": int(self.people.cache.forget(user.id))}

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.decoder.alive and not self._stopping.is_set()

    def __enter__(self) -> Server:
        self.decoder.start()
        self.worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.decoder.stop()
        self.worker.stop()
        self.database.close()
