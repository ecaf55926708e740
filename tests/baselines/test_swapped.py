"""Another person's adapter with everything else one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank_building import build_bank
from mta.base_model import BaseModel
from mta.baselines.methods import METHODS
from mta.errors import DataError
from mta.personalize import Resources
from small_world import ADAPT, BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, Heard, small_pool, small_targets


@pytest.fixture(scope="module")
def have(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    base: BaseModel = tiny_base(torch.float32)
    folder = tmp_path_factory.mktemp("swapped")
    bank = build_bank(small_pool(), OWN, base, folder / "bank", config=BANK, encoders=ENCODERS, engine=ENGINE)
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, bank=bank, pool=small_pool(),
        encoder=ENCODER, engine=ENGINE,
    )  # fmt: skip


def test_everybody_gets_the_next_persons_adapter_and_keeps_the_rest(have: Resources) -> None:
    own = METHODS["mta"](small_targets(), have)
    swapped = METHODS["swapped-user"](small_targets(), have)
    giver = {"ann": "bob", "bob": "cy", "cy": "ann"}
    for name, person in swapped.users.items():
        adapter, other = person.adapter, own.users[giver[name]].adapter
        assert adapter is not None
        assert other is not None
        assert adapter.fingerprint == other.fingerprint
        assert person.user == own.users[name].user
        assert person.prompts == own.users[name].prompts


def test_the_circle_does_not_depend_on_the_order_of_users(have: Resources) -> None:
    forward = METHODS["swapped-user"](small_targets(), have)
    backward = METHODS["swapped-user"](small_targets()[::-1], have)
    for name, person in forward.users.items():
        assert person.match == backward.users[name].match


def test_adapters_that_are_there_are_not_trained_again(have: Resources, tmp_path: Path) -> None:
    METHODS["mta"](small_targets(), replace(have, folder=tmp_path))
    heard = Heard()
    METHODS["swapped-user"](small_targets(), replace(have, folder=tmp_path, progress=heard))
    assert heard.trained() == set()


def test_a_sibling_is_not_another_person(have: Resources) -> None:
    ann = small_targets()[0]
    twin = replace(ann, user_id="ann-again")
    with pytest.raises(DataError, match="2 users are one person"):
        METHODS["swapped-user"]([ann, twin], have)
    users = [ann, twin, small_targets()[1]]
    swapped = METHODS["swapped-user"](users, have).users
    own = METHODS["mta"](users, have).users
    for name in ("ann", "ann-again"):
        assert swapped[name].match == own["bob"].match
