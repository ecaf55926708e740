"""An exported adapter is exactly what the run served the user with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mta
from cli_world import QUICK, QUICK_ADAPT, good, refused, snapshot
from mta.adapter_files import load_adapter
from mta.bank import load_bank
from mta.evaluation.predict import predict
from mta.files import sealed
from mta.lora.peft_format import read_peft
from mta.merging import merge_cat


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


def test_a_merge_has_the_weights_that_are_asked_for(finished_run: Path, films: Any, tmp_path: Path) -> None:
    words = ("merge", "--bank", finished_run / "bank", "--targets", films.targets, "--user", "dan")
    found = good(*words, "--weights", "uniform", "--out", tmp_path / "merged", "--json").json["match"]
    assert found["weights"] == [0.5, 0.5]
    bank = load_bank(finished_run / "bank")
    wanted = merge_cat([bank.adapter(name) for name in found["anchor_ids"]], [0.5, 0.5])
    for name in wanted.modules:
        torch.testing.assert_close(read_peft(tmp_path / "merged").delta(name), wanted.delta(name))
    assert "`mta merge` loads none" in refused(*words, "--weights", "evidence", "--out", tmp_path / "other")


def test_adapters_made_without_a_run_are_exported_over_their_bank(
    finished_run: Path, films: Any, tmp_path: Path
) -> None:
    bank = finished_run / "bank"
    good("adapt", "--bank", bank, "--targets", films.targets, *QUICK_ADAPT, "--out", tmp_path / "adapters")
    good("export", tmp_path / "adapters", "--bank", bank, "--user", "dan", "--out", tmp_path / "peft")
    good("export", finished_run, "--user", "dan", "--out", tmp_path / "same")
    made, wanted = read_peft(tmp_path / "peft"), read_peft(tmp_path / "same")
    for name in wanted.modules:
        torch.testing.assert_close(made.delta(name), wanted.delta(name))


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


def _exported(run: Path, folder: Path, *more: object) -> str:
    """Export dan's adapter; return its content as a fingerprint."""
    good("export", run, "--user", "dan", *more, "--out", folder)
    return read_peft(folder).fingerprint()


def test_later_calls_in_a_run_folder_never_change_what_its_answers_were_given_with(
    run_copy: Path, films: Any, tmp_path: Path
) -> None:
    kinds = {name: ("--method", name) for name in ("mta", "merged-only")}
    wanted = {name: _exported(run_copy, tmp_path / f"first {name}", *words) for name, words in kinds.items()}
    before = snapshot(run_copy)
    words = ("run", "lamp-2", *films.both, *QUICK, "--scale", 0.5, "--out", run_copy)
    refused(*words, "--bank-size", 50, "--method", "mta")
    assert snapshot(run_copy) == before
    good(*words, "--method", "base")
    assert json.loads((run_copy / "config.json").read_text())["config"]["merge"]["scale"] == 0.5
    for name, more in kinds.items():
        assert _exported(run_copy, tmp_path / f"later {name}", *more) == wanted[name]
    good(*words, "--method", "mta")
    assert _exported(run_copy, tmp_path / "new answers", *kinds["mta"]) != wanted["mta"]


def test_a_run_whose_bank_was_built_anew_since_is_not_exported(run_copy: Path, films: Any, tmp_path: Path) -> None:
    good("run", "lamp-2", *films.both, *QUICK, "--bank-lr", 0.5, "--method", "base", "--out", run_copy)
    for method in ("mta", "merged-only"):
        message = refused("export", run_copy, "--user", "dan", "--method", method, "--out", tmp_path / "peft")
        assert "over another bank" in message
    assert not (tmp_path / "peft").exists()


@pytest.fixture(scope="module")
def diverged_run(films: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose users' trainings all diverged."""
    folder = tmp_path_factory.mktemp("diverged") / "run"
    methods = ("--method", "mta", "--method", "adapt-only", "--method", "merged-only")
    done = good("run", "lamp-2", *films.both, *QUICK, *methods, "--adapt-lr", 1e30, "--out", folder)
    assert "Not adapted: 2 users (training diverged) of mta, adapt-only." in done.out
    return folder


def test_a_diverged_adapter_is_said_and_never_served(diverged_run: Path, films: Any, tmp_path: Path) -> None:
    scores = json.loads((diverged_run / "scores.json").read_text())
    said = {name: method["not_adapted"] for name, method in scores["methods"].items()}
    assert said == {"mta": {"training diverged": 2}, "adapt-only": {"training diverged": 2}, "merged-only": {}}
    assert scores["run"]["not adapted"] == "2 users (training diverged) of mta, adapt-only"
    assert "training diverged" in (diverged_run / "table.md").read_text()
    assert "training diverged" in (diverged_run / "report.html").read_text()
    done = good("export", diverged_run, "--user", "dan", "--out", tmp_path / "mta")
    assert "dan was not adapted (training diverged): these are the merged anchors alone" in done.err
    merged = _exported(diverged_run, tmp_path / "merged", "--method", "merged-only")
    assert read_peft(tmp_path / "mta").fingerprint() == merged
    message = refused("export", diverged_run, "--user", "dan", "--method", "adapt-only", "--out", tmp_path / "own")
    assert "has no adapt-only adapter" in message
    assert "training diverged" in message
    good(
        *("generate", "--bank", diverged_run / "bank", "--adapters", diverged_run / "adapters"),
        *("--targets", films.targets, "--out", tmp_path / "answers.jsonl"),
    )
    lines = (diverged_run / "predictions.jsonl").read_text().splitlines()
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == [line for line in lines if '"mta"' in line]


def test_a_diverged_adapter_is_refused_whatever_the_record_says(diverged_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(diverged_run, tmp_path / "run"))
    record = json.loads((run / "adapters" / "mta.json").read_text())
    _, note = load_adapter(run / "adapters" / "mta" / "dan.safetensors")
    changed = {**record, "skipped": {}, "users": {"dan": note["fingerprint"]}}
    (run / "adapters" / "mta.json").write_text(json.dumps(sealed(changed)))
    assert "diverged" in refused("export", run, "--user", "dan", "--out", tmp_path / "peft")


def test_unknown_method_is_refused(finished_run: Path, tmp_path: Path) -> None:
    message = refused("export", finished_run, "--user", "dan", "--method", "mtaa", "--out", tmp_path / "peft")
    assert "unknown method that keeps adapters 'mtaa'; did you mean mta? known: adapt-only, merged-only" in message


def test_a_loaded_user_answers_as_in_the_run(finished_run: Path, films: Any) -> None:
    base = mta.load_base_model("tiny-random")
    users = mta.read_users(films.targets, task="lamp-2").users
    loaded = [mta.load_user(user, run=finished_run, base=base) for user in users]
    lines = map(json.loads, (finished_run / "predictions.jsonl").read_text().splitlines())
    wanted = {(row["user_id"], row["query_id"]): row for row in lines if row["method"] == "mta"}
    made = predict(loaded, base=base, engine=mta.EngineConfig()).rows
    assert len(made) == len(wanted) > 1
    for row in made:
        then = wanted[row.user_id, row.query_id]
        assert row.text == then["text"]
        assert row.nll == pytest.approx(then["nll"], abs=1e-5)


def test_only_users_of_the_run_are_loaded(finished_run: Path, films: Any) -> None:
    base = mta.load_base_model("tiny-random")
    stranger = replace(mta.read_users(films.targets, task="lamp-2").users[0], user_id="nobody")
    with pytest.raises(mta.NotFound, match="no anchors are recorded for user 'nobody'"):
        mta.load_user(stranger, run=finished_run, base=base)
