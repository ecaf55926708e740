"""Settings of a server, each documented once; `mta serve` has an option for each."""

from __future__ import annotations

from dataclasses import dataclass

from mta.config import require_at_least, require_one_of

UNKNOWN = ("base", "population")
"""What people without a history are answered with."""
NUMBERS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a server behaves."""

    unknown: str = "base"
    """What answers a person of whom nothing is known: base, or the bank's population adapter."""
    most_rows: int = 32
    """Requests decoded together."""
    most_tokens: int = 32768
    """Tokens of keys and values, padding included, of the requests decoded together."""
    most_waiting: int = 256
    """Requests that may wait for their turn; more are told to come again (429)."""
    most_waiting_each: int = 16
    """Of these, requests of one person."""
    deadline_s: float = 60.0
    """Seconds until a request must be answered."""
    most_new_tokens: int = 512
    """Longest answer in tokens that may be asked for."""
    most_prompt_chars: int = 100_000
    """Longest prompt in characters."""
    most_body_bytes: int = 2_000_000
    """Largest body of a request."""
    most_history: int = 2_000
    """Items of one person's history."""
    requests_per_minute: int = 6_000
    """Requests of one tenant."""
    cache_mb: int = 256
    """Memory for adapters of people, those used last."""
    adapter_numbers: str = "bfloat16"
    """Number format of stored adapters: float32, bfloat16 or int8."""
    adapt_slots: int = 8
    """People adapted together in the background."""
    adapt_tokens: int = 512
    """Tokens in one pass of adaptation; requests wait for a pass to end."""
    adapt_patience_s: float = 2.0
    """Seconds that adaptation waits between passes while requests are being answered."""

    def __post_init__(self) -> None:
        require_one_of(self, "unknown", UNKNOWN)
        require_one_of(self, "adapter_numbers", NUMBERS)
        require_at_least(
            self, 1, "most_rows", "most_tokens", "most_waiting", "most_waiting_each", "most_new_tokens",
            "most_prompt_chars", "most_body_bytes", "most_history", "requests_per_minute", "adapt_slots",
            "adapt_tokens",
        )  # fmt: skip
        require_at_least(self, 0, "deadline_s", "cache_mb", "adapt_patience_s")
