"""A server as a process, and the commands around its store."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cli_world import good, refused

KEYS = ["--need-keys"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_until_ready(address: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not get ready")


@pytest.mark.parametrize("options", [[], KEYS])
def test_a_server_answers_keeps_people_and_stops(tmp_path: Path, options: list[str]) -> None:
    store = f"sqlite:///{tmp_path / 'u.db'}"
    key = good("keys", "add", "--store", store, "--label", "test").out.strip() if options else "any"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    call = ["serve", "--base", "tiny-random", "--store", store, "--port", str(port), *options]
    process = subprocess.Popen(
        [sys.executable, "-c", "from mta.cli.main import main; main()", *call],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until_ready(address, process)
        if options:
            assert httpx.get(f"{address}/v1/users").status_code == 401
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"})
        item = {"fields": {"input": "Write", "output": "soon"}}
        assert client.post("/v1/users", json={"id": "ada", "history": [item]}).status_code == 201
        asked = {"user": "ada", "messages": [{"role": "user", "content": "Write"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.json()["mta"]["served"] == "base"
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert f"serving tiny-random for Own data, people by id at {address}" in out
    assert ("need no key" in err) == (not options)
    assert "history items" in good("users", "audit", "ada", "--store", store).out
    assert "1 user, 1 history items" in good("users", "delete", "ada", "--store", store).out
    assert "no user 'ada'" in refused("users", "audit", "ada", "--store", store)


def test_a_server_needs_a_model_or_a_bank(tmp_path: Path) -> None:
    assert "name a bank with --bank" in refused("serve", "--store", f"sqlite:///{tmp_path / 'u.db'}")
    assert "it must be 1 or more" in refused("serve", "--base", "tiny-random", "--most-rows", "0")
