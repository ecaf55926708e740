"""One setting varied: each point is the run with that setting, the bank is shared where it may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta.baselines.methods import find_method
from mta.errors import ConfigError, NotFound
from mta.evaluation.answers import method_record
from mta.evaluation.run import open_run, run
from mta.evaluation.run_config import RunConfig
from mta.evaluation.statistics import score_predictions
from mta.evaluation.sweep import AS_ASKED, SWEEPS, _usual_values, run_sweep
from mta.files import read_json
from mta.personalize import match_users
from mta.tasks import get_task
from small_run import RUN, small_world
from small_world import Heard

pytestmark = pytest.mark.usefixtures("own_cache")


def swept(folder: Path, over: str, values: Sequence[float], **more: Any) -> tuple[dict[str, Any], Heard]:
    heard = Heard()
    return run_sweep(*small_world(), RUN, folder, over=over, values=values, progress=heard, **more), heard


def scored(config: RunConfig, folder: Path, method: str = "mta") -> dict[str, float]:
    """Metrics of a plain run with the point's settings."""
    done = run(*small_world(), replace(config, methods=(method,)), folder)
    return dict(done.scores["methods"][method]["metrics"])


def test_every_point_is_the_run_with_that_setting(tmp_path: Path) -> None:
    cases = {
        "weight": ((0.0, 0.7), lambda v: replace(RUN, merge=replace(RUN.merge, weights="fixed", first_weight=v))),
        "top-k": ((1, 3), lambda v: replace(RUN, top_k=int(v))),
        "rank": ((2, 4), lambda v: replace(RUN, adapt=replace(RUN.adapt, rank=int(v), alpha=2.0 * v))),
    }
    for over, (values, change) in cases.items():
        scores, _ = swept(tmp_path / over, over, values)
        for value in values:
            alone = scored(change(value), tmp_path / f"{over}-{value}")
            assert scores["methods"][f"{value:g}"]["metrics"] == pytest.approx(alone), (over, value)


def test_fixed_weights_stand_beside_those_of_the_similarity(tmp_path: Path) -> None:
    scores, _ = swept(tmp_path, "weight", (0.0, 0.5, 1.0))
    assert list(scores["methods"]) == ["0", "0.5", "1", AS_ASKED]
    assert scores["sweep"]["values"] == {"0": 0.0, "0.5": 0.5, "1": 1.0}
    nll = {name: method["metrics"]["nll"] for name, method in scores["methods"].items()}
    assert len(set(nll.values())) > 2
    assert read_json(tmp_path / "scores.json") == scores
    pairs = {(row["a"], row["b"]) for row in scores["comparisons"]}
    assert pairs == {(AS_ASKED, "0"), (AS_ASKED, "0.5"), (AS_ASKED, "1")}
    assert all("p_holm" in row for row in scores["comparisons"])
    assert f"{AS_ASKED} - 0.5" in (tmp_path / "table.md").read_text()


def test_one_bank_serves_all_points_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    _, heard = swept(tmp_path, "top-k", (1, 2))
    assert heard.stages.count("bank training") == 1
    again, heard = swept(tmp_path, "top-k", (1, 2))
    assert heard.trained() == set()
    assert not [stage for stage in heard.stages if stage.startswith("answers")]
    more, heard = swept(tmp_path, "top-k", (1, 2, 3))
    assert [stage for stage in heard.stages if stage.startswith("answers")] == ["answers of 3"]
    assert {(row["a"], row["b"]) for row in more["comparisons"]} == {("1", "2"), ("1", "3")}
    assert more["methods"]["2"]["metrics"] == again["methods"]["2"]["metrics"]


def test_banks_of_several_sizes_share_trained_anchors(tmp_path: Path) -> None:
    swept(tmp_path, "bank-size", (2,), method="merged-only")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "anchors" / "anchors").glob("*.safetensors")}
    scores, heard = swept(tmp_path, "bank-size", (3,), method="merged-only")
    assert len(before) == 2
    assert all(path.stat().st_mtime_ns == written for path, written in before.items()), "no anchor is trained twice"
    files = {path.stem for path in (tmp_path / "anchors" / "anchors").glob("*.safetensors")}
    chosen = {
        size: {anchor["user_id"] for anchor in read_json(tmp_path / "points" / size / "bank" / "bank.json")["anchors"]}
        for size in ("2", "3")
    }
    assert chosen["2"] | chosen["3"] == files
    assert "bank training" in heard.trained(), "anchors that no smaller bank had are trained"
    alone = scored(
        replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=3))),
        tmp_path / "alone",
        "merged-only",
    )
    assert scores["methods"]["3"]["metrics"] == pytest.approx(alone, rel=1e-5)  # temperatures magnify rounding


def test_weights_of_a_point_are_the_fixed_ones(tmp_path: Path) -> None:
    pool, targets = small_world()
    changed = SWEEPS["weight"].change(RUN, 0.7)
    resources = open_run(pool, targets, changed, tmp_path)
    for match in match_users(targets, resources).values():
        assert match.weights == pytest.approx((0.7, 0.3))
    record = method_record("0.7", find_method("merged-only"), targets, resources, tmp_path)
    assert score_predictions(record.predictions, metrics=get_task("lamp-3").metrics).queries == 9


REFUSED = {
    "a broken number": ("top-k", (1.5,), "top-k is 1.5; it must be a whole number"),
    "no number": ("rank", (float("nan"),), "rank is nan; it must be a whole number"),
    "endless": ("bank-size", (float("inf"),), "bank-size is inf; it must be a whole number"),
    "more anchors than the bank": ("top-k", (2, 9), "top_k is 9, more than the 3 anchors"),
    "a bank smaller than K": ("bank-size", (1, 3), "top_k is 2, more than the 1 anchors"),
    "a weight above one": ("weight", (0.5, 1.2), "first_weight is 1.2"),
    "a rank of zero": ("rank", (0,), "rank is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    over, values, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        swept(tmp_path / "sweep", over, values)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("over", "method"),
    [
        ("rank", "merged-only"),
        ("weight", "adapt-only"),
        ("weight", "uniform-weights"),
        ("top-k", "oppu"),
        ("rank", "rag-1"),
        ("rank", "population"),
        ("weight", "population-adapt"),
        ("top-k", "per-pcs"),
        ("weight", "proper+prior"),
        ("bank-size", "oppu"),
        ("bank-size", "classical"),
    ],
)
def test_settings_that_change_nothing_are_refused(tmp_path: Path, over: str, method: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(method)} does not depend on {over}"):
        swept(tmp_path / "sweep", over, (1,), method=method)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("over", "method", "values"),
    [
        ("rank", "population-adapt", (1, 2)),
        ("bank-size", "oppu-task", (2, 3)),
        ("bank-size", "per-pcs", (2, 3)),
        ("top-k", "proper", (1, 2)),
        ("weight", "rag+mta", (0.1, 0.9)),
    ],
)
def test_settings_that_change_a_rival_are_taken(
    tmp_path: Path, over: str, method: str, values: tuple[float, ...]
) -> None:
    scores, _ = swept(tmp_path, over, values, method=method)
    one, two, *_ = (found["metrics"]["nll"] for found in scores["methods"].values())
    assert one != two


def test_weights_of_a_single_anchor_are_refused(tmp_path: Path) -> None:
    single = replace(RUN, top_k=1)
    with pytest.raises(ConfigError, match="is 1 at every point; merge more anchors"):
        run_sweep(*small_world(), single, tmp_path / "sweep", over="weight")
    assert not (tmp_path / "sweep").exists()


def test_usual_banks_are_no_larger_than_the_pool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool, targets = small_world()
    many = [replace(pool[n % len(pool)], user_id=f"pool {n}") for n in range(64)]
    assert _usual_values(SWEEPS["bank-size"], many) == (50, 60)
    assert "left out bank sizes above 64, the users of the pool: 70, 80, 90, 100" in caplog.text
    assert _usual_values(SWEEPS["top-k"], pool) == SWEEPS["top-k"].usual
    few = f"the pool has {len(pool)} users with a history"
    with pytest.raises(ConfigError, match=f"{few}; name smaller ones with --value"):
        run_sweep(pool, targets, RUN, tmp_path / "sweep", over="bank-size")
    with pytest.raises(ConfigError, match=f"asked to have 99 anchors, and {few}; lower the values"):
        run_sweep(pool, targets, RUN, tmp_path / "sweep", over="bank-size", values=(3, 99))
    assert not (tmp_path / "sweep").exists()


def test_an_unknown_sweep_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="bank-size, rank, top-k, weight"):
        swept(tmp_path, "depth", (1,))


# called again -----------------------------------------------------------------------------------------------------


def test_a_later_call_adds_its_values_to_the_table(tmp_path: Path) -> None:
    swept(tmp_path, "top-k", (2,), method="merged-only")
    more, heard = swept(tmp_path, "top-k", (3, 1), method="merged-only")
    assert list(more["methods"]) == ["1", "2", "3"]
    assert [stage for stage in heard.stages if stage.startswith("answers")] == ["answers of 3", "answers of 1"]


def test_values_of_other_settings_do_not_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    swept(tmp_path, "top-k", (1,), method="merged-only")
    other = replace(RUN, merge=replace(RUN.merge, mode="linear"))
    scores = run_sweep(*small_world(), other, tmp_path, over="top-k", values=(2,), method="merged-only")
    assert list(scores["methods"]) == ["2"]
    assert "merge.mode cat -> linear" in caplog.text


def test_no_result_is_replaced_by_one_of_another_kind(tmp_path: Path) -> None:
    swept(tmp_path / "sweep", "top-k", (1,), method="merged-only")
    scored(RUN, tmp_path / "run", "merged-only")
    with pytest.raises(ConfigError, match="holds a sweep over top-k of merged-only, not over weight of merged-only"):
        swept(tmp_path / "sweep", "weight", (0.5,), method="merged-only")
    with pytest.raises(ConfigError, match="holds the results of a run"):
        swept(tmp_path / "run", "top-k", (1,))
    with pytest.raises(ConfigError, match="holds the results of a sweep"):
        scored(RUN, tmp_path / "sweep", "merged-only")


def test_too_large_a_k_is_refused_before_anything_is_trained_for_others(tmp_path: Path) -> None:
    pool, targets = small_world()
    few = replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=3, min_history=6)))
    heard = Heard()
    with pytest.raises(ConfigError):
        run_sweep(pool, targets, few, tmp_path, over="top-k", values=(1, 3), progress=heard)
    assert heard.trained() == set()


def test_inverted_weights_need_two_anchors_at_every_point(tmp_path: Path) -> None:
    inverted = replace(RUN, merge=replace(RUN.merge, weights="inverted"))
    with pytest.raises(ConfigError, match="inverted weights exchange those of two anchors, and there are 3"):
        run_sweep(*small_world(), inverted, tmp_path / "sweep", over="top-k", values=(2, 3))
    assert not (tmp_path / "sweep").exists()
