"""A server as a process, and the commands around its store."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cli_world import good, refused
from mta.files import read_json
from mta.lora.peft_format import read_peft
from mta.serving.database import open_database
from mta.serving.tenants import ensure_tenant
from mta.serving.user_store import UserStore
from server_process import ServerProcess
from small_world import invented_bank, person

KEYS = ["--need-keys"]


@pytest.mark.parametrize("options", [[], KEYS])
def test_a_server_answers_keeps_people_and_stops(tmp_path: Path, options: list[str]) -> None:
    store = f"sqlite:///{tmp_path / 'u.db'}"
    key = good("keys", "add", "--store", store, "--label", "test").out.strip() if options else "any"
    with ServerProcess(["--base", "tiny-random", "--store", store, *options], tmp_path) as server:
        if options:
            assert httpx.get(f"{server.address}/v1/users").status_code == 401
        client = httpx.Client(base_url=server.address, headers={"Authorization": f"Bearer {key}"})
        item = {"fields": {"input": "Write", "output": "soon"}}
        assert client.post("/v1/users", json={"id": "ada", "history": [item]}).status_code == 201
        asked = {"user": "ada", "messages": [{"role": "user", "content": "Write"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.json()["mta"]["served"] == "base"
    assert server.process.returncode == 0, "it ends in order when it is asked to"
    told = server.log.read_text()
    assert f"serving tiny-random for Own data, people by id at {server.address}" in told
    assert ("need no key" in told) == (not options)
    assert "history items" in good("users", "audit", "ada", "--store", store).out
    assert "1 user, 1 history items" in good("users", "delete", "ada", "--store", store).out
    assert "no user 'ada'" in refused("users", "audit", "ada", "--store", store)


def test_a_server_needs_a_model_or_a_bank(tmp_path: Path) -> None:
    assert "name a bank with --bank" in refused("serve", "--store", f"sqlite:///{tmp_path / 'u.db'}")
    assert "it must be 1 or more" in refused("serve", "--base", "tiny-random", "--most-rows", "0")


def test_people_are_exported_by_name_or_all_of_them(tmp_path: Path) -> None:
    invented_bank(tmp_path / "bank")
    url = f"sqlite:///{tmp_path / 'u.db'}"
    store = UserStore(open_database(url))
    tenant = ensure_tenant(store.database, "default")
    for name, count in (("ada", 2), ("bob", 3), ("new", 0)):
        user = store.create_user(tenant, name)
        store.append_history(user, person(name, items=count).history)
    words = ["users", "export", "--store", url, "--bank", tmp_path / "bank", "--out", tmp_path / "out"]
    told = good(*words)
    assert "ada: ada@0, rank 4 of 4, lost 0.00%" in told.out
    assert "new: nothing to export" in told.err
    listed = read_json(tmp_path / "out" / "users.json")
    assert [one["user"] for one in listed] == ["ada", "bob"]
    assert read_peft(tmp_path / "out" / "bob@0").rank == 4
    assert "holds an export already" in refused(*words)
    words[-1] = tmp_path / "again"
    assert "no user 'eve'" in refused(*words, "eve")
    assert "rank 2 of 4" in good(*words, "bob", "--rank-budget", "2").out
    assert "name the bank" in refused("users", "export", "--store", url, "--out", tmp_path / "new")
