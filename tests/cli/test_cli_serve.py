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
import torch

from cli_world import good, refused
from mta.files import read_json
from mta.lora.peft_format import read_peft
from mta.merging import Match
from mta.serving.database import open_database
from mta.serving.tenants import ensure_tenant
from mta.serving.user_store import StoredMatch, UserStore
from small_world import invented_bank, person

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


def test_people_are_exported_by_name_or_all_of_them(tmp_path: Path) -> None:
    bank = invented_bank(tmp_path / "bank")
    url = f"sqlite:///{tmp_path / 'u.db'}"
    store = UserStore(open_database(url))
    tenant = ensure_tenant(store.database, "default")
    for name, count in (("ada", 2), ("bob", 3), ("new", 0)):
        user = store.create_user(tenant, name)
        store.append_history(user, person(name, items=count).history)
        if count:
            vector = torch.zeros(bank.vectors.shape[1])
            match = Match(name, bank.anchor_ids[:2], (0.9, 0.8), (0.6, 0.4))
            store.save_match(user, StoredMatch(match, vector, bank.checksum, count))
    words = ["users", "export", "--store", url, "--bank", tmp_path / "bank", "--out", tmp_path / "out"]
    told = good(*words)
    assert "ada: ada@0, rank 4 of 4, lost 0.00%" in told.out
    assert "new: nothing to export" in told.err
    listed = read_json(tmp_path / "out" / "users.json")
    assert [one["user"] for one in listed] == ["ada", "bob"]
    assert read_peft(tmp_path / "out" / "bob@0").rank == 4
    assert "rank 2 of 4" in good(*words, "bob", "--rank-budget", "2").out
    assert "no user 'eve'" in refused(*words, "eve")
    assert "name the bank" in refused("users", "export", "--store", url, "--out", tmp_path / "out")
