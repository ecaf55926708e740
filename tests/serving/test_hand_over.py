"""People handed over as plain LoRAs: what PEFT applies is what the server answers with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from small_server import running

from helpers import tiny_base
from mta.config import MergeConfig
from mta.files import read_json
from mta.lora.adapter import Adapter, scale
from mta.lora.peft_format import read_peft
from mta.records import HistoryItem
from mta.serving.hand_over import HandedOver, export_person, index_of
from mta.serving.people import MTA
from mta.serving.server import Server
from mta.serving.user_store import StoredUser
from small_world import invented_bank

ITEMS = [HistoryItem(f"i{n}", {"input": f"garden {n}", "output": f"rose {n}"}) for n in range(4)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as made:
        yield made


def made(server: Server, name: str, *, items: int = 4, adapted: bool = False) -> StoredUser:
    """Create somebody; adapt her if wanted."""
    tenant = server.gate.tenant(None)
    user = server.store.create_user(tenant, name)
    server.store.append_history(user, ITEMS[:items])
    if adapted:
        job = server.jobs.add(tenant, [user])
        server.worker.wake()
        until = time.monotonic() + 60
        while server.jobs.find(tenant, job.id).state != "done":
            assert time.monotonic() < until
            time.sleep(0.02)
    return server.store.find_user(tenant, name)


def exported(server: Server, user: StoredUser, folder: Path, budget: int | None = None) -> HandedOver:
    found = export_person(server.people.composition, user, folder, base_model="tiny", rank_budget=budget)
    assert found is not None
    return found


def largest_difference(one: Adapter, other: Adapter) -> float:
    assert one.modules.keys() == other.modules.keys()
    return max(float((one.delta(name) - other.delta(name)).abs().max()) for name in one.modules)


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_written_is_what_answers(server: Server, tmp_path: Path, adapted: bool) -> None:
    user = made(server, "../ada \N{ROSE}", adapted=adapted)
    handed = exported(server, user, tmp_path / "out")
    served = server.people.served(user, way=MTA)
    assert (served.what, served.revision) == ("adapted" if adapted else "merged", handed.revision)
    assert served.adapter is not None
    folder = tmp_path / "out" / handed.folder
    assert folder.parent == tmp_path / "out"
    assert handed.folder == f"%2E%2E%2Fada%20%F0%9F%8C%B9@{user.revision}"
    assert largest_difference(read_peft(folder), served.adapter.whole()) < 1e-6
    assert (handed.rank, handed.lost) == (handed.exact_rank, 0.0)


def test_peft_answers_as_the_server_does(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada", adapted=True)
    handed = exported(server, user, tmp_path)
    model = peft.PeftModel.from_pretrained(tiny_base(torch.float32).model, str(tmp_path / handed.folder))
    ids = torch.arange(20)[None] + 40
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
    plain = tiny_base(torch.float32).model
    served = server.people.served(user, way=MTA).adapter
    assert served is not None
    with torch.no_grad():
        unadapted = plain(input_ids=ids).logits
        for name in served.modules:
            plain.get_submodule(name).weight += served.whole().delta(name)
        ours = plain(input_ids=ids).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(theirs, unadapted, atol=1e-3)


def test_a_rank_budget_says_what_it_costs(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada", adapted=True)
    whole = exported(server, user, tmp_path / "whole")
    cut = exported(server, user, tmp_path / "cut", budget=2)
    assert (cut.rank, cut.exact_rank) == (2, whole.rank)
    full = read_peft(tmp_path / "whole" / whole.folder)
    small = read_peft(tmp_path / "cut" / cut.folder)
    squares = {name: full.delta(name).double().square().sum() for name in full.modules}
    missed = sum((full.delta(name) - small.delta(name)).double().square().sum() for name in full.modules)
    assert 0 < cut.lost < 1
    assert cut.lost == pytest.approx(float(missed / sum(squares.values())), rel=1e-3)
    assert exported(server, user, tmp_path / "roomy", budget=64).lost == 0


def test_a_revision_is_merged_as_it_was_trained_whatever_the_settings_are_now(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada", adapted=True)
    composition = server.people.composition
    later = replace(composition, merge=MergeConfig(scale=0.25))
    one, other = composition.whole(user), later.whole(user)
    assert one is not None
    assert other is not None
    assert one.revision == other.revision == 1
    assert largest_difference(one.adapter.whole(), other.adapter.whole()) == 0
    plain = made(server, "bob")
    merged, quarter = composition.whole(plain), later.whole(plain)
    assert merged is not None
    assert quarter is not None
    assert largest_difference(scale(merged.adapter.whole(), 0.25), quarter.adapter.whole()) < 1e-6


def test_anchors_are_found_anew_when_settings_that_decide_have_changed(server: Server) -> None:
    user = made(server, "ada")
    composition = server.people.composition
    assert len(composition.match(user).anchor_ids) == 2
    assert len(replace(composition, top_k=1).match(user).anchor_ids) == 1


def test_a_revision_over_another_bank_is_not_handed_over_as_one(server: Server, tmp_path: Path) -> None:
    user = made(server, "ada", adapted=True)
    other = invented_bank(tmp_path / "other", seed=5)
    handed = export_person(
        replace(server.people.composition, bank=other), user, tmp_path / "out", base_model="tiny", rank_budget=None
    )
    assert handed is not None
    assert (user.revision, handed.revision, handed.folder) == (1, 0, "ada@0")


def test_who_is_unknown_has_nothing_to_hand_over(server: Server, tmp_path: Path) -> None:
    user = made(server, "new", items=0)
    composition = server.people.composition
    assert export_person(composition, user, tmp_path / "out", base_model="tiny", rank_budget=None) is None
    assert not (tmp_path / "out").exists()


def test_the_index_names_everybody(server: Server, tmp_path: Path) -> None:
    handed = [exported(server, made(server, name), tmp_path) for name in ("ada", "bob")]
    listed = index_of(handed)
    assert [(one["user"], one["folder"], one["lost"]) for one in listed] == [
        ("ada", "ada@0", 0.0),
        ("bob", "bob@0", 0.0),
    ]
    assert read_json(tmp_path / "ada@0" / "adapter_config.json")["base_model_name_or_path"] == "tiny"
