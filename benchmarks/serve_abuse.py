"""A server abused on purpose: generated and hand-made requests that no honest client sends.

    python benchmarks/serve_abuse.py --out docs/results/reliability [--examples 200] [--seed 0]

`mta serve` runs in a process of its own with keys for two tenants, over a tiny random model. One tenant's people hold
a marker text that no answer to the other may hold. Requests come from the OpenAPI description (schemathesis, valid and
broken ones, as the other tenant), from a list made by hand (other tenants' people and jobs, paths that climb, control
characters, broken UTF-8 and JSON, bodies and histories that are too large, numbers out of bounds, wrong methods), and
from raw sockets (clients that send a byte a second, go away in the middle, or announce other lengths than they send),
while an honest client asks all the time. Statuses are counted; one that is not meant, an honest request that fails,
or the marker in an answer ends the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import schemathesis
from schemathesis import GenerationMode

from fault_lives import Violation
from measuring import table, write
from mta.serving.database import open_database
from mta.serving.tenants import add_key, ensure_tenant
from server_process import ServerProcess

MARKER = "the-secret-of-acme"
MEANT = (200, 201, 202, 400, 401, 404, 405, 409, 413, 429)
"""Statuses that abuse may get."""
SLOW_CLIENTS, SLOW_S = 64, 20.0
ITEM = {"fields": {"input": "where?", "output": "here"}}
HISTORY = 10**5
JSON = {"Content-Type": "application/json"}
ODD_QUESTIONS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 10**12}, {"temperature": -1}, {"temperature": 1e308},
    {"top_p": 0}, {"seed": 2**80}, {"stop": [""] * 3}, {"stop": ["x"] * 10**4}, {"n": 5}, {"stream": "maybe"},
    {"user": "\0"}, {"user": "x" * 10**5}, {"model": "../../etc"}, {"messages": []}, {"messages": [{"role": "x"}]},
    {"messages": [{"role": "user", "content": "word " * 10**5}]}, {"logit_bias": {"1": 100}},
    {"messages": [{"role": "user", "content": "\ud800"}]}, {"messages": [{"role": "user", "content": ""}]},
)  # fmt: skip


class Abuser:
    """One tenant's client that counts what it gets and looks for what it must not get."""

    def __init__(self, address: str, key: str) -> None:
        self.client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        self.counts: dict[str, Counter[str]] = {}

    def send(self, what: str, method: str, path: str, **more: Any) -> None:
        """Send a request and judge the answer."""
        answer = self.client.request(method, path, **more)
        self.judge(what, f"{method} {path[:80]}", answer.status_code, answer.content)

    def judge(self, what: str, request: str, status: int, content: bytes) -> None:
        """Count an answer; refuse what is not meant."""
        self.counts.setdefault(what, Counter())[str(status)] += 1
        if status not in MEANT:
            raise Violation(f"{what}: {request} got {status}: {content[:300]!r}")
        if MARKER.encode() in content:
            raise Violation(f"{what}: {request} got another tenant's text")


def generated(abuser: Abuser, address: str, examples: int, seed: int) -> None:
    """Send what schemathesis makes of the API's description."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing to break: no parameters and no body
                _send_all(abuser, address, operation, mode, examples=examples, seed=seed)


def _send_all(abuser: Abuser, address: str, operation: Any, mode: GenerationMode, *, examples: int, seed: int) -> None:
    """Send what is generated for one operation."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def once(case: Any) -> None:
        answer = case.call(base_url=address, headers=dict(abuser.client.headers))
        abuser.judge(f"generated, {mode.value}", f"{case.method} {case.path}", answer.status_code, answer.content)

    once()


def by_hand(abuser: Abuser, theirs: dict[str, str]) -> None:
    """Send what was thought of."""
    for method, path in (
        ("GET", "/v1/users/ada"), ("DELETE", "/v1/users/ada"), ("GET", "/v1/users/ada/history"),
        ("GET", "/v1/users/ada/audit"), ("POST", "/v1/users/ada/adapt"), ("GET", f"/v1/jobs/{theirs['job']}"),
    ):  # fmt: skip
        abuser.send("another tenant's", method, path)
    for model in ("mta", "mta-merged", "rag", "base"):
        asked = {"model": model, "user": "ada", "messages": [{"role": "user", "content": "where?"}], "max_tokens": 4}
        abuser.send("another tenant's", "POST", "/v1/chat/completions", json=asked)
    for name in (
        "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%00b", "ada%2fhistory", "%ff%fe", "'; DROP TABLE users;--",
        "%F0%9F%92%A9", "a" * 5000, "%5c..%5c", "{name}", "ada%0d%0aX-Injected: 1", "\u202eada",
    ):  # fmt: skip
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/history"), ("POST", "/adapt")):
            abuser.send("odd paths", method, f"/v1/users/{name}{tail}")
    for body in (
        b"", b"{", b"null", b"[]", b"\xff\xfe{}", b'{"id": "\xed\xa0\x80"}', b'{"id": "a\xffb"}', b'{"id": NaN}',
        b'{"id": "\\ud800"}', b'{"id": 1e999}', b'{"id": "x", "id": "y", "z": 1}', b"[" * 100_000,
        b'{"a":' * 50_000, json.dumps({"id": "x" * 10**6}).encode(), b'{"id": "\\u0000"}',
    ):  # fmt: skip
        for path in ("/v1/users", "/v1/users/eve/history", "/v1/adapt", "/v1/chat/completions", "/v1/completions"):
            abuser.send("broken bodies", "POST", path, content=body, headers=JSON)
    for extra in ODD_QUESTIONS:
        odd = {"messages": [{"role": "user", "content": "where?"}], "max_tokens": 4, **extra}
        abuser.send("odd questions", "POST", "/v1/chat/completions", content=json.dumps(odd).encode(), headers=JSON)
    for size in (3 * 10**6, 3 * 10**7):
        abuser.send("too large", "POST", "/v1/users", content=b"x" * size)
    abuser.send("too large", "POST", "/v1/users", content=(b"x" * 10**6 for _ in range(20)))  # of unsaid length
    for start in range(0, HISTORY, 5000):
        items = [{"id": f"i{number}", **ITEM} for number in range(start, start + 5000)]
        abuser.send("long histories", "POST", "/v1/users/eve/history", json={"items": items})
    abuser.send("long histories", "POST", "/v1/users", json={"id": "long", "history": [ITEM] * 9999})
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "DELETE", "HEAD"):
        for path in ("/v1/users", "/v1/models", "/v1/chat/completions", "/healthz", "/metrics"):
            abuser.send("other methods", method, path)
    for key in ("", "Bearer", "Bearer  mta", "Basic YTpi", "Bearer mta-" + "x" * 10**4, "Bearer \xfc"):
        headers = {"Authorization": key.encode("latin-1")}
        abuser.send("wrong keys", "GET", "/v1/users", headers=headers)


def raw_clients(address: str) -> Iterator[socket.socket]:
    """Yield connections that never say all they have begun to say."""
    host, port = address.removeprefix("http://").split(":")
    starts = (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
        b"POST /v1/users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"\x16\x03\x01\x02\x00\x01\x00",
    )
    for number in range(SLOW_CLIENTS):
        made = socket.create_connection((host, int(port)))
        made.sendall(starts[number % len(starts)])
        yield made


def slowly(address: str) -> int:
    """Hold connections open, a byte a second, and let go of them in the middle; return how many there were."""
    clients = list(raw_clients(address))
    until = time.monotonic() + SLOW_S
    while time.monotonic() < until:
        time.sleep(1)
        for client in clients:
            try:
                client.sendall(b"x")
            except OSError:  # the server has had enough of it
                continue
    for client in clients:
        client.close()
    return len(clients)


class Honest(threading.Thread):
    """Somebody who asks the whole time and has a right to be answered."""

    def __init__(self, address: str, key: str) -> None:
        super().__init__()
        self.address, self.key = address, key
        self.over = threading.Event()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until told that it is over."""
        asked = {"user": "ada", "messages": [{"role": "user", "content": "where?"}], "max_tokens": 4}
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.address, headers=headers, timeout=60) as client:
            while not self.over.wait(0.1):
                started = time.perf_counter()
                answer = client.post("/v1/chat/completions", json=asked)
                self.seconds.append(time.perf_counter() - started)
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code}: {answer.text[:200]}")


def suffer(examples: int, seed: int) -> dict[str, Any]:
    """Abuse a server; return what was counted."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = f"sqlite:///{folder / 'users.db'}"
        database = open_database(url)
        acme, other = (add_key(database, ensure_tenant(database, name), label="k") for name in ("acme", "other"))
        database.close()
        options = ["--base", "tiny-random", "--store", url, "--need-keys", "--no-playground", "--threads", 1]
        with ServerProcess([*options, "--requests-per-minute", 10**6], folder) as server:
            theirs = set_up(server.address, acme)
            honest = Honest(server.address, acme)
            honest.start()
            abuser = Abuser(server.address, other)
            abuser.send("set up", "POST", "/v1/users", json={"id": "eve"})
            try:
                by_hand(abuser, theirs)
                slow = slowly(server.address)
                generated(abuser, server.address, examples, seed)
            except Violation:
                print(server.log.read_text()[-4000:], file=sys.stderr)
                raise
            finally:
                honest.over.set()
                honest.join()
            if honest.failures:
                raise Violation(f"an honest request got {honest.failures[0]}")
            if httpx.get(f"{server.address}/readyz").status_code != 200:
                raise Violation("the server is not ready any more")
        log = server.log.read_text()
        if "Traceback" in log:
            raise Violation(f"the server's log holds a traceback: {log[log.index('Traceback') :][:2000]}")
        if MARKER in log:
            raise Violation("the server's log holds a person's text")
    counts: dict[str, Any] = {what: dict(sorted(found.items())) for what, found in abuser.counts.items()}
    slowest = max(honest.seconds)
    return {
        **counts,
        "slow clients": slow,
        "honest answers": len(honest.seconds),
        "slowest of them, s": round(slowest, 2),
    }


def set_up(address: str, key: str) -> dict[str, str]:
    """Create the people who are to be left alone."""
    item = {"fields": {"input": MARKER, "output": MARKER}}
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        client.post("/v1/users", json={"id": "ada", "history": [item]}).raise_for_status()
        job = client.post("/v1/users/ada/adapt").raise_for_status().json()
    return {"job": job["id"]}


def main() -> None:
    """Do it and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="generated requests of each kind for each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    counts = suffer(options.examples, options.seed)
    rows = [
        [what, ", ".join(f"{n} x {status}" for status, n in found.items()) if isinstance(found, dict) else found]
        for what, found in counts.items()
    ]
    page = f"### Abuse\n\n{table(['what', 'answers'], rows)}\n\nAnother tenant's text seen: never."
    write(options.out / "abuse.json" if options.out else None, {"seed": options.seed, "counts": counts}, page)


if __name__ == "__main__":
    main()
