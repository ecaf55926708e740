"""The resolver for vLLM: names, numbers, what is written, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_server import running

from mta.errors import ConfigError
from mta.lora.peft_format import read_peft
from mta.merging import Match
from mta.records import HistoryItem
from mta.serving.server import Server
from mta.serving.user_store import StoredMatch, StoredUser
from mta.vllm_plugin import (
    UserResolver,
    adapter_name,
    own_folder,
    parse_name,
    register,
    resolver_from,
    signed_name,
    stable_id,
)


@dataclass
class AsVllm:
    """What vLLM's LoRARequest is called with."""

    lora_name: str
    lora_int_id: int
    lora_path: str


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as made:
        yield made


def made(server: Server, name: str) -> StoredUser:
    """Create somebody who has anchors."""
    tenant = server.gate.tenant(None)
    user = server.store.create_user(tenant, name)
    server.store.append_history(user, [HistoryItem("i", {"input": "garden", "output": "rose"})])
    user = server.store.find_user(tenant, name)
    server.people.composition.match(user)
    return user


def resolver(server: Server, folder: Path, **options: Any) -> UserResolver:
    return UserResolver(
        server.people.composition, server.gate.tenant(None), "served", folder, make_request=AsVllm, **options
    )


def resolved(found: UserResolver, name: str, base: str = "served") -> AsVllm | None:
    return asyncio.run(found.resolve_lora(base, name))


def test_a_person_is_made_when_she_is_asked_for(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada@home/../x")
    name = adapter_name(user.name, user.revision)
    found = resolved(resolver(server, tmp_path / "out"), name)
    assert found is not None
    assert (found.lora_name, found.lora_int_id) == (name, stable_id(name))
    assert Path(found.lora_path).parent == tmp_path / "out"
    served = server.people.served(user, way="mta").adapter
    assert served is not None
    written = read_peft(Path(found.lora_path))
    whole = served.whole()
    assert all(torch.allclose(written.delta(module), whole.delta(module), atol=1e-6) for module in whole.modules)


def test_what_is_not_there_or_not_ours_is_left_to_others(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada")
    found = resolver(server, tmp_path / "out")
    for name in ("ada", "user:ada", "user:ada@", "user:ada@-1", "user:ada@²", "user:@0", "user:eve@0", "user:ada@7"):
        assert resolved(found, name) is None, name
    assert resolved(found, adapter_name("ada", user.revision), base="another") is None
    assert not (tmp_path / "out").exists()


def test_a_new_revision_is_a_new_name_and_the_old_one_goes(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada")
    found = resolver(server, tmp_path / "out")
    old = resolved(found, adapter_name("ada", 0))
    tenant = server.gate.tenant(None)
    job = server.jobs.add(tenant, [user])
    server.worker.wake()
    while server.jobs.find(tenant, job.id).state != "done":
        pass
    assert resolved(found, adapter_name("ada", 0)) is None
    new = resolved(found, adapter_name("ada", 1))
    assert old is not None
    assert new is not None
    assert new.lora_int_id != old.lora_int_id
    assert not Path(old.lora_path).exists()
    assert Path(new.lora_path).is_dir()


def test_no_more_than_agreed_are_kept(server: Server, tmp_path: Path) -> None:
    found = resolver(server, tmp_path / "out", keep=2)
    for name in ("ada", "bob", "cy"):
        made(server, name)
    for name in ("ada", "bob", "ada", "cy"):
        assert resolved(found, adapter_name(name, 0))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ada@0", "cy@0"]


def test_names_can_be_signed(server: Server, tmp_path: Path) -> None:
    made(server, "ada")
    found = resolver(server, tmp_path / "out", secret="s3cret")
    assert resolved(found, signed_name("ada", 0, secret="s3cret")) is not None
    for name in (adapter_name("ada", 0), signed_name("ada", 0, secret="other"), f"{adapter_name('ada', 0)}~"):
        assert resolved(found, name) is None
    assert parse_name(signed_name("a~b@c", 3, secret="x"), secret="x") is not None


def test_a_rank_budget_is_kept(server: Server, tmp_path: Path) -> None:
    made(server, "ada")
    found = resolved(resolver(server, tmp_path / "out", rank=1), adapter_name("ada", 0))
    assert found is not None
    assert read_peft(Path(found.lora_path)).rank == 1


def test_numbers_are_the_same_in_every_process() -> None:
    code = "from mta.vllm_plugin import stable_id; print(stable_id('user:ada@1'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{stable_id('user:ada@1')}\n"
    assert 0 < stable_id("user:ada@1") < 2**31


def test_folders_of_dead_processes_go(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive = tmp_path / f"process-{dead.pid}", tmp_path / "process-1"
    left.mkdir()
    alive.mkdir()
    own = own_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, own])


def test_settings_come_from_the_environment(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada")
    known = server.store.load_match(user)
    assert isinstance(known, StoredMatch)
    assert isinstance(known.match, Match)
    bank = server.people.composition.bank
    assert bank is not None
    settings = {
        "MTA_VLLM_STORE": f"sqlite:///{tmp_path / 'users.db'}", "MTA_VLLM_BANK": str(bank.folder),
        "MTA_VLLM_BASE": "served", "MTA_VLLM_FOLDER": str(tmp_path / "shm"), "MTA_VLLM_RANK": "8",
    }  # fmt: skip
    found = resolved(resolver_from(settings, AsVllm), adapter_name("ada", 0))
    assert found is not None
    assert found.lora_path.startswith(str(tmp_path / "shm" / "process-"))
    for name, value, said in (("MTA_VLLM_RANK", "no", "wanted a number"), ("MTA_VLLM_BASE", None, "set MTA_VLLM_BASE")):
        with pytest.raises(ConfigError, match=said):
            resolver_from({key: kept for key, kept in (settings | {name: value}).items() if kept is not None}, AsVllm)


def test_without_settings_vllm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTA_VLLM_STORE", raising=False)
    asked: list[object] = []
    monkeypatch.setattr("mta.vllm_plugin.resolver_from", lambda *given: asked.append(given))
    register()
    assert not asked
