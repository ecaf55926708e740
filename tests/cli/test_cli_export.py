"""An exported adapter is exactly what the run served the user with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cli_world import QUICK, good, refused
from mta.adapter_files import load_adapter
from mta.bank import load_bank
from mta.lora.peft_format import read_peft


def _deltas(run: Path, user: str) -> dict[str, torch.Tensor]:
    """Sum of the anchors by weight and the user's own part, the slow way."""
    bank = load_bank(run / "bank")
    row = next(row for row in json.loads((run / "matches.json").read_text()) if row["user_id"] == user)
    own, _ = load_adapter(run / "adapters" / "mta" / f"{user}.safetensors")
    return {
        name: own.delta(name)
        + sum(w * bank.adapters[a].delta(name) for a, w in zip(row["anchor_ids"], row["weights"], strict=True))
        for name in own.modules
    }


def test_export_is_the_weighted_anchors_plus_the_own_part(finished_run: Path, tmp_path: Path) -> None:
    good("export", finished_run, "--user", "eve", "--to", "peft", "--out", tmp_path / "peft")
    adapter = read_peft(tmp_path / "peft")
    wanted = _deltas(finished_run, "eve")
    assert adapter.modules.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(adapter.delta(name), delta)
    assert (
        json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-random"
    )


def test_parts_of_an_export_add_up(finished_run: Path, films: Any, tmp_path: Path) -> None:
    parts = {}
    for method in ("mta", "merged-only"):
        good("export", finished_run, "--user", "dan", "--method", method, "--out", tmp_path / method)
        parts[method] = read_peft(tmp_path / method)
    own, _ = load_adapter(finished_run / "adapters" / "mta" / "dan.safetensors")
    for name in own.modules:
        total = parts["merged-only"].delta(name) + own.delta(name)
        torch.testing.assert_close(parts["mta"].delta(name), total)
    good(
        *("merge", "--bank", finished_run / "bank", "--targets", films.targets, "--user", "dan"),
        *("--out", tmp_path / "merged"),
    )
    for name in own.modules:
        torch.testing.assert_close(read_peft(tmp_path / "merged").delta(name), parts["merged-only"].delta(name))


def test_linear_merge_of_a_run_is_exported_as_linear(films: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good("run", "lamp-2", *films.both, *QUICK, "--method", "mta", "--merge", "linear", "--out", run)
    good("export", run, "--user", "dan", "--method", "merged-only", "--out", tmp_path / "peft")
    assert read_peft(tmp_path / "peft").rank == 8  # "cat" of two anchors would have 16


def test_method_that_was_not_run_is_refused(finished_run: Path, tmp_path: Path) -> None:
    message = refused("export", finished_run, "--user", "dan", "--method", "adapt-only", "--out", tmp_path / "peft")
    assert "has no adapt-only adapters on record (adapt-only.json), only those of: mta" in message
    assert not (tmp_path / "peft").exists()


def test_adapters_of_another_bank_are_refused(films: Any, finished_run: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    good("bank", "build", "--pool", films.pool, "--task", "lamp-2", *QUICK[:-4], "--bank-lr", 0.5, "--out", bank)
    message = refused(
        *("generate", "--bank", bank, "--adapters", finished_run / "adapters", "--targets", films.targets),
        *("--out", tmp_path / "answers.jsonl"),
    )
    assert "over another bank" in message


def test_adapting_one_user_more_keeps_those_of_before(finished_run: Path, films: Any, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    common = ("--bank", finished_run / "bank", "--targets", films.targets)
    good("adapt", *common, *QUICK[-4:], "--user", "dan", "--out", adapters)
    alone = (adapters / "mta" / "dan.safetensors").read_bytes()
    missing = refused("generate", *common, "--adapters", adapters, "--out", tmp_path / "answers.jsonl")
    assert "'eve'" in missing
    good("adapt", *common, *QUICK[-4:], "--user", "eve", "--out", adapters)
    assert (adapters / "mta" / "dan.safetensors").read_bytes() == alone
    good("generate", *common, "--adapters", adapters, "--out", tmp_path / "answers.jsonl")


def test_adapters_trained_again_otherwise_are_not_mixed_with_the_record(
    finished_run: Path, films: Any, tmp_path: Path
) -> None:
    adapters, common = tmp_path / "adapters", ("--bank", finished_run / "bank", "--targets", films.targets)
    good("adapt", *common, *QUICK[-4:], "--out", adapters)
    record = (adapters / "mta.json").read_bytes()
    good("adapt", *common, *QUICK[-4:], "--adapt-lr", 0.5, "--out", adapters)
    (adapters / "mta.json").write_bytes(record)  # as a call that was killed before it wrote its own
    message = refused("generate", *common, "--adapters", adapters, "--out", tmp_path / "answers.jsonl")
    assert "other settings or data than recorded" in message
