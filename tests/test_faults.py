"""A small helping of `benchmarks/faults.py`: twenty kills of real processes, small disks, damaged files, two at once.

What the script relies on to see a fault is tried here as well.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fault_damage import CACHE, after_damage, call_again, first_touches, make_state
from fault_lives import Finished, Violation, is_close, require_close
from mta.files import write_json
from mta.tensor_files import save_tensors
from mta.training_store import CHECKPOINT, PLAN

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script has found, all parts of it."""
    out = tmp_path_factory.mktemp("faults")
    asked = [sys.executable, str(SCRIPT), "--kills", "10", "--out", str(out)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads((out / "faults.json").read_text()))


def test_nothing_is_lost_or_damaged(found: dict[str, Any]) -> None:
    assert (found["runs"]["kills"], found["writes"]["kills"]) == (10, 10)
    assert found["fuzz"]["inputs"] == 500


def test_a_second_call_is_refused(found: dict[str, Any]) -> None:
    assert found["two"] == {"pairs": 1, "refused": 1}


def test_runs_that_met_a_full_disk_went_on(found: dict[str, Any]) -> None:
    if "skipped" in found["disk"]:
        pytest.skip(found["disk"]["skipped"])
    assert found["disk"]["runs that went on with room"] == found["disk"]["runs that met a full disk"] > 0


def test_all_damage_is_accounted_for(found: dict[str, Any]) -> None:
    if "skipped" in found["damage"]:
        pytest.skip(found["damage"]["skipped"])
    outcomes = [counts for what, counts in found["damage"].items() if what != "damaged"]
    assert sum(found["damage"]["damaged"].values()) == sum(sum(counts.values()) for counts in outcomes) == 10
    assert sum(counts.get(CHECKPOINT, 0) for counts in outcomes) >= 2
    assert sum(counts.get("vectors.sqlite", 0) for counts in outcomes) >= 3


# what sees a fault ------------------------------------------------------------------------------------------------


def store(folder: Path, name: str = "ann") -> Path:
    path = folder / "adapters" / "mta" / f"{name}.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    return path


def test_a_finished_adapter_may_not_go_change_or_be_made_again(tmp_path: Path) -> None:
    finished = Finished()
    path = store(tmp_path)
    for _ in range(2):
        finished.check(tmp_path)
    shutil.copy(path, tmp_path / "kept")
    path.unlink()
    with pytest.raises(Violation, match=r"ann\.safetensors was finished and is gone"):
        finished.check(tmp_path)
    store(tmp_path)
    with pytest.raises(Violation, match="has been made again"):
        finished.check(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Violation, match="is changed"):
        finished.check(tmp_path)


def test_an_adapter_may_be_stored_again_until_a_checkpoint_says_it_is_finished(tmp_path: Path) -> None:
    finished, folder = Finished(), store(tmp_path).parent
    write_json(folder / PLAN, {"jobs": ["ann", "bob"], "fingerprint": "x"})
    for _ in range(2):
        store(tmp_path)
        finished.check(tmp_path)
    assert finished.stored_again == 1
    save_tensors(folder / CHECKPOINT, {"a": torch.ones(1)}, metadata={"state": json.dumps({"finished": ["ann"]})})
    finished.check(tmp_path)
    store(tmp_path)
    with pytest.raises(Violation, match="has been made again"):
        finished.check(tmp_path)


def test_answers_may_be_written_again_and_anchors_go_into_the_bank(tmp_path: Path) -> None:
    finished, answers, bank = Finished(), tmp_path / "predictions" / "mta.json", tmp_path / "bank"
    save_tensors(bank / "work" / "anchors" / "eve.safetensors", {"a": torch.ones(3)})
    for _ in range(2):
        write_json(answers, {"seconds": 1.5})
        finished.check(tmp_path)
    write_json(bank / "bank.json", {})
    shutil.rmtree(bank / "work")
    finished.check(tmp_path)
    write_json(bank / "bank.json", {})
    with pytest.raises(Violation, match=r"bank\.json was finished and has been made again"):
        finished.check(tmp_path)
    write_json(answers, {"seconds": 1.6})
    with pytest.raises(Violation, match=r"mta\.json was finished and is changed|made again"):
        finished.check(tmp_path)


def test_the_system_says_which_files_are_read_before_they_are_replaced(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "inotify_init1"):
        pytest.skip("this system has no inotify")
    for name in ("read", "replaced", "both", "left"):
        write_json(tmp_path / "in" / name, 1)
    with first_touches(tmp_path) as touched:
        for name in ("read", "both"):
            (tmp_path / "in" / name).read_bytes()
        for name in ("replaced", "both"):
            write_json(tmp_path / "in" / name, 2)
        (tmp_path / "in" / "replaced").read_bytes()
    found = {name: touched.get(tmp_path / "in" / name) for name in ("read", "replaced", "both", "left")}
    assert found == {"read": "opened", "replaced": "replaced", "both": "opened", "left": None}


def test_numbers_may_differ_by_rounding_and_nothing_else_may() -> None:
    wanted = {"text": "5", "nll": 1.25, "tokens": 3, "label_scores": {"1": -0.5}, "anchors": ["a", "b"], "none": None}
    assert is_close({**wanted, "nll": 1.2501, "label_scores": {"1": -0.5001}}, wanted)
    for name, other in {
        "text": "4", "nll": 1.27, "tokens": 4, "label_scores": {"2": -0.5}, "anchors": ["b", "a"], "none": 0.0
    }.items():  # fmt: skip
        assert not is_close({**wanted, name: other}, wanted)
    assert not is_close({name: wanted[name] for name in list(wanted)[1:]}, wanted)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run cut off in adaptation, beside one that nobody disturbed; the page says which files have checksums."""
    folder = tmp_path_factory.mktemp("cut off")
    call_again(folder / "whole run")
    make_state(folder / "adaptation cut off", sound=folder / "whole run" / "run")
    return folder / "adaptation cut off"


def after_a_change(state: Path, name: str, old: str, new: str, folder: Path) -> str:
    """Change the first place in a file where `old` stands, make the call again, and return what became of that."""
    shutil.copytree(state, folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    return str(after_damage(folder, Path(name), state, sound=state.parent / "whole run" / "run", what="changed"))


CHANGES = {
    "run/config.json": ('"top_k": 2', '"top_k": 3'),
    "run/bank/bank.json": ('"asked": 3', '"asked": 2'),
    "run/adapters/merged-only.json": ('"weights": [\n        0.5', '"weights": [\n        0.6'),
    "run/adapters/population/timing.json": ('"seconds": ', '"seconds": 1'),
    "run/adapters/mta/unfinished.json": ("target-000", "target-001"),
    "run/predictions/base.json": ('"text": "', '"text": "4'),
}
"""file -> a change after which it is still a file of its form"""


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_a_record_is_noticed_by_name(cut_off: Path, tmp_path: Path, name: str) -> None:
    outcome = after_a_change(cut_off, name, *CHANGES[name], tmp_path / "run")
    assert outcome.startswith(("refused by name", "named and "))


def test_a_change_in_a_cached_vector_is_noticed(cut_off: Path, tmp_path: Path) -> None:
    state = Path(shutil.copytree(cut_off.parent / "whole run", tmp_path / "run"))
    with sqlite3.connect(state / CACHE) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(length(vector))")
    shutil.rmtree(state / "run" / "bank")
    refusal, said = call_again(state)
    assert refusal is None
    assert f"vectors in the cache {state / CACHE} are damaged" in said
    require_close(state / "run", cut_off.parent / "whole run" / "run", "changed vectors")


def test_a_change_that_is_read_and_not_noticed_ends_the_script(
    cut_off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.training_store.seal_broken", lambda found: False)
    name = "run/adapters/population/timing.json"
    with pytest.raises(Violation, match="it was read, and nothing was said"):
        after_a_change(cut_off, name, *CHANGES[name], tmp_path / "run")


def test_answers_that_differ_end_the_script(cut_off: Path, tmp_path: Path) -> None:
    sound = cut_off.parent / "whole run" / "run"
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    require_close(run, sound, "copied")
    for name, part in (("predictions.jsonl", "answers"), ("matches.json", "matches")):
        text = (run / name).read_text()
        (run / name).write_text(text.replace("target-001", "target-009", 1))
        with pytest.raises(Violation, match=f"{part} differ"):
            require_close(run, sound, "changed")
        (run / name).write_text(text)
