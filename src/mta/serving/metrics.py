"""Counts and times of a server for Prometheus; nothing in them tells of a person."""

from __future__ import annotations

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mta.serving.server import Server

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What a server counts.

    Args:
        server: looked at when the counts are read.
    """

    def __init__(self, server: Server) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("mta_requests", "Requests", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "mta_request_seconds", "Time to an answer", ["route"], buckets=SECONDS, registry=self._registry
        )
        people, decoder = server.people, server.decoder
        for name, what, value in (
            ("mta_requests_waiting", "Requests that wait for their turn", lambda: len(server.queue)),
            ("mta_requests_running", "Requests that are decoded", lambda: decoder.running),
            ("mta_tokens_made", "Tokens of answers since the start", lambda: decoder.tokens),
            ("mta_adapters_cached", "Adapters of people in memory", lambda: len(people.cache)),
            ("mta_adapters_cached_bytes", "Their bytes", lambda: people.cache.bytes),
            ("mta_adapter_cache_hits", "Adapters found in memory", lambda: people.cache.hits),
            ("mta_adapter_cache_misses", "Adapters read from the store", lambda: people.cache.misses),
            ("mta_people_adapted", "People adapted since the start", lambda: server.worker.adapted),
        ):
            Gauge(name, what, registry=self._registry).set_function(value)

    def saw(self, request: Request, status: int, seconds: float) -> None:
        """Count a request by its route, not its path, which may hold a name."""
        route = getattr(request.scope.get("route"), "path", "none")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> str:
        """Return all counts in Prometheus' text format."""
        return generate_latest(self._registry).decode()
