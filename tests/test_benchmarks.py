"""Benchmarks run everywhere, small; each says what it does, and the page of headlines takes over what it should."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mta.files import read_json, write_json, write_text

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def benchmark(name: str) -> ModuleType:
    """A script as a module; scripts import each other by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


# what they say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_starts_and_says_what_it_does(name: str, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {name}")
    assert f"benchmarks/{name}" in said, "an example of how it is called"


def test_the_scripts_are_found() -> None:
    assert {"train.py", "scale.py", "store.py", "peak_memory.py", "speed_page.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_sound(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# the page of headlines --------------------------------------------------------------------------------------------


def write_results(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for number, (name, content) in enumerate(files.items()):
        machine = {"processor": f"number {number}", "units": ["avx2", "amx"], "command": f"python {name}"}
        write_json(folder / name, {"machine": machine, **content})


def test_headlines_are_the_ratios_of_the_headline_cases(tmp_path: Path) -> None:
    train, infer, page = (benchmark(name) for name in ("train", "infer", "speed_page"))
    processes = benchmark("process_per_user")
    of_train = {
        f"engine vs {train.PLAIN}": 1.5,
        f"engine vs {train.BEST}": 1.2,
        f"engine vs {train.PACKED}": 1.1,
        f"engine vs {train.TRAINER}": 1.9,
        "floor / engine": 0.8,
        "floor, whole rows / engine": 1.3,
    }
    of_infer = {"base / engine": 0.7, **{f"engine vs {way}": 2.0 for way in (infer.NAMES, infer.POLYLORA, infer.MERGE)}}
    of_processes = {f"engine vs {processes.PROCESSES}": 8.0, processes.LOADED: 30.0}
    few = {"users": 8, "ratios": dict.fromkeys(of_infer, 99.0)}
    write_results(
        tmp_path,
        {
            f"train/{train.HEADLINE}.json": {"ratios": of_train},
            "train/lamp-2-qv.json": {"ratios": {f"engine vs {train.PLAIN}": 9.0, "something new": 5.0}},
            "processes/bfloat16-4.json": {"ratios": of_processes},
            "infer/all-bfloat16-8.json": {"batches": [few, {"users": page.USERS_IN_A_BATCH, "ratios": of_infer}]},
            "gpu/tiny.json": {"device": "a GPU", "ratios": {"floor / engine": 0.5}, "command": "gpu.py --shape tiny"},
        },
    )
    found = page.headline(tmp_path)
    assert found["ratios"] == {
        "train_vs_peft_plain": 1.5,
        "train_vs_peft_best": 1.2,
        "train_vs_peft_packed": 1.1,
        "train_vs_hf_trainer": 1.9,
        "train_over_floor": 0.8,
        "train_over_floor_of_whole_rows": 1.3,
        "train_vs_process_per_user": 8.0,
        "train_vs_process_per_user_base_loaded": 30.0,
        "infer_over_base": 0.7,
        "infer_vs_peft_adapter_names": 2.0,
        "infer_vs_polylora": 2.0,
        "infer_vs_merge_per_user": 2.0,
    }
    assert found["other_cases"] == {
        "train lamp-2-qv": {"train_vs_peft_plain": 9.0},
        "gpu tiny, a GPU": {"floor / engine": 0.5},
    }
    assert found["machine"]["processor"] == "number 0"
    assert found["processors"]["processes/bfloat16-4.json"] == "number 2, amx"
    assert "python benchmarks/gpu.py --shape tiny" in found["commands"]
    assert "python processes/bfloat16-4.json" in found["commands"]


def test_memory_is_weighed_against_a_plain_loop_and_what_was_foretold(tmp_path: Path) -> None:
    """By hand: the engine takes 600 more, the plain loop 500, slots 100; 600 were foretold, 700 taken besides 200."""
    memory, page = benchmark("peak_memory"), benchmark("speed_page")
    held = {way: {"libraries": 200, "start": 300, "peak": 800} for way in memory.WAYS}
    held[memory.ENGINE]["peak"] = 900
    told = {"weights": 100, "slots": 100, "largest pass": 400}
    found = memory.ratios(held, told)
    assert list(found.values()) == [
        pytest.approx(1.0),
        pytest.approx(600 / 700, abs=1e-3),
        pytest.approx(800 / 900, abs=1e-3),
    ]
    held[memory.ENGINE]["peak"] = 1200
    worse = memory.ratios(held, told)
    assert worse[memory.OVER_PEFT] == 1.5
    write_results(
        tmp_path, {f"memory/{page.HEADLINE}.json": {"ratios": found}, "memory/lamp-2-fp32.json": {"ratios": worse}}
    )
    told_of = page.headline(tmp_path)
    names = ["memory_over_peft_plus_slots", "memory_foretold_over_measured", "memory_foretold_over_process"]
    assert told_of["ratios"] == dict(zip(names, found.values(), strict=True))
    assert told_of["other_cases"] == {"memory lamp-2-fp32": dict(zip(names, worse.values(), strict=True))}
    assert all(name in told_of["what"] for name in names)


def test_nothing_measured_is_no_headline_and_no_fault(tmp_path: Path, monkeypatch) -> None:
    page = benchmark("speed_page")
    write_text(tmp_path / "speed" / "store.md", "### Stored\n")
    monkeypatch.setattr(sys, "argv", ["speed_page.py", str(tmp_path)])
    page.main()
    assert read_json(tmp_path / "speed.json")["ratios"] == {}
    assert "### Stored" in (tmp_path / "speed" / "README.md").read_text(encoding="utf-8")


# small runs -------------------------------------------------------------------------------------------------------


TINY = ("--shape", "tiny", "--device", "cpu")


LAMP_2 = ("--base", "tiny-random", "--case", "lamp-2", "--repeats", "1")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("gpu.py", *TINY, "--users", "2", "--items", "16", "--repeats", "1"), "floor"),
        *[
            pytest.param(words, wanted, marks=pytest.mark.slow)
            for words, wanted in [
                (("ablations.py", *LAMP_2), "time / engine"),
                (("peak_memory.py", *LAMP_2, "--users", "2"), "more than at the start"),
                (("threads.py", "--base", "tiny-random", "--repeats", "1"), "beside a busy process"),
                (("process_per_user.py", "--base", "tiny-random", "--users", "1", "--repeats", "1"), "users/h"),
                (("infer.py", "--base", "tiny-random", "--users", "2", "--repeats", "1"), "base / engine"),
                (("scale.py", "--users", "40", "--trained", "20", "--repeats", "1"), "| personalize | 20 |"),
                (("store.py", "--base", "tiny-random", "--users", "9", "--real-users", "3"), "user store"),
            ]
        ],
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_it_runs_and_finds_equal_losses(words: tuple[str, ...], wanted: str, tmp_path: Path) -> None:
    more = ["--folder", str(tmp_path / "work")] if words[0] == "store.py" else []
    done = subprocess.run(
        [sys.executable, str(FOLDER / words[0]), *words[1:], *more, "--anyway", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert wanted in done.stdout
    assert list(tmp_path.rglob("*.json"))
