"""`mta serve` in a process of its own, for benchmarks and fault tests: started, waited for, stopped or killed.

Example:
    >>> with ServerProcess(["--base", "tiny-random"], folder) as server:
    ...     httpx.get(f"{server.address}/readyz")
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx

START_S = 300.0
"""Seconds a server may take to start."""


class ServerProcess:
    """One server on a free port of the loopback.

    Args:
        options: of `mta serve`, without --port.
        folder: for its log, `server.log`, which is appended to.
    """

    def __init__(self, options: Sequence[object], folder: Path) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        start = "from mta.cli.main import main; main()"
        command = [sys.executable, "-c", start, "serve", *options, "--port", self.port]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Return when requests are answered; end the script if that does not come."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit(f"the server does not start:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it, without a word before."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> ServerProcess:
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(60)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
