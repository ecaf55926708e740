"""Time and bytes against the number of users: what is added up, what a second call keeps, and who is cheaper when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mta.adapter_files import load_trained
from mta.baselines.oppu import PUBLISHED, oppu
from mta.config import ALL_LINEAR, QUERY_VALUE
from mta.errors import ConfigError, DataError
from mta.evaluation.folders import GROWTH
from mta.evaluation.growth import break_even, costs_per_user, markdown_growth, measure_growth
from mta.evaluation.run import open_run
from mta.files import read_json, write_json
from mta.personalize import personalize_users
from mta.progress import Step
from mta.records import HistoryItem
from small_run import RUN, small_world
from small_world import Heard

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ["mta all-linear", "oppu all-linear", "mta q,v", "oppu q,v"]
FOLDERS = dict(zip(NAMES, ["mta-all-linear", "oppu-all-linear", "mta-q-v", "oppu-q-v"], strict=True))
Points = Mapping[tuple[str, int], Mapping[str, Any]]


def grown(folder: Path, *users: int, heard: Any = None, config: Any = RUN) -> dict[str, Any]:
    return measure_growth(*small_world(), config, folder, users=users, progress=heard or Heard())


def points_of(result: Mapping[str, Any]) -> Points:
    return {(point["method"], point["users"]): point for point in result["points"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("growth") / "growth"
    return folder, grown(folder, 3, 1)


def files_of(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def values(paths: list[Path]) -> int:
    return sum(tensor.numel() for path in paths for tensor in load_file(path).values())


def adapters(folder: Path, name: str) -> list[Path]:
    return files_of(folder / FOLDERS[name] / "adapters" / name.split()[0], "*.safetensors")


def test_the_points_are_there_in_order_and_in_the_file(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    assert list(points_of(result)) == [(name, users) for name in NAMES for users in (1, 3)]
    assert read_json(folder / "growth.json") == result
    assert (result["task"], result["base"]) == ("lamp-3", "tiny-random")
    assert result["run"]["target users"] == "the first 3 of 3"
    assert (folder / "table.md").read_text() == markdown_growth(result) + "\n"


def test_bytes_are_those_of_the_files_with_the_bank(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    points = points_of(result)
    first = small_world()[1][0].user_id
    for name in NAMES:
        place = folder / FOLDERS[name]
        bank = [path for path in files_of(place / "bank", "**/*") if path.is_file()]
        kept = [*adapters(folder, name), *files_of(place / "matches", "*.json")]
        assert len(kept) == (6 if name.startswith("mta") else 3)
        point = points[name, 3]
        assert point["bank_bytes"] == size(bank)
        assert (point["bank_bytes"] > 0) == name.startswith("mta")
        assert point["bytes"] == size(bank) + size(kept)
        tensors = [path for path in bank + kept if path.suffix == ".safetensors"]
        assert point["counted_bytes"] == 4 * values(tensors)
        own = [path for path in kept if path.stem == first]
        assert points[name, 1]["bytes"] == size(bank) + size(own)


def test_a_user_stores_the_values_of_rank_and_layers(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    resources = open_run(*small_world(), RUN, folder / "mta-q-v")
    for name in NAMES:
        rank = RUN.adapt.rank if name.startswith("mta") else PUBLISHED.rank
        shapes = resources.base.shapes(QUERY_VALUE if name.endswith("q,v") else ALL_LINEAR).values()
        for path in adapters(folder, name):
            assert values([path]) == sum(rank * (d_out + d_in) for d_out, d_in in shapes)


def test_time_is_what_training_took_and_adds_up(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    points = points_of(result)
    for name in NAMES:
        place = folder / FOLDERS[name]
        timing = read_json(place / "adapters" / name.split()[0] / "timing.json")["jobs"]
        bank = read_json(place / "bank" / "bank.json")["train_seconds"] if name.startswith("mta") else 0.0
        one, all_three = points[name, 1], points[name, 3]
        assert all_three["bank_seconds"] == one["bank_seconds"] == bank
        trained = sum(job["seconds"] for job in timing.values())
        assert all_three["seconds"] == pytest.approx(bank + trained + all_three["match_seconds"])
        assert bank < one["seconds"] < all_three["seconds"]
        if name.startswith("mta"):
            matching = read_json(place / "matching.json")
            assert len(matching) == 3
            assert all_three["match_seconds"] == pytest.approx(sum(row["seconds"] for row in matching.values()))
            assert 0 < one["match_seconds"] < all_three["match_seconds"]
        else:
            assert all_three["match_seconds"] == 0


def test_both_methods_make_the_same_number_of_updates(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    points = points_of(result)
    for users in (1, 3):
        assert len({points[name, users]["updates_per_user"] for name in NAMES}) == 1
        assert {points[name, users]["not_adapted"] for name in NAMES} == {0}


def test_adapters_are_those_of_a_run_that_trains_everybody_at_once(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = finished
    pool, targets = small_world()
    resources = open_run(pool, targets, RUN, tmp_path)  # the settings' own layers are query and value
    personalize_users(targets, resources, name="mta")
    oppu(targets, resources, config=PUBLISHED, name="oppu")
    for name in ("mta q,v", "oppu q,v"):
        paths = adapters(folder, name)
        assert len(paths) == 3
        for path in paths:
            mine, here = load_trained(path)[0], load_trained(tmp_path / "adapters" / name.split()[0] / path.name)[0]
            assert mine.keys() == here.keys()
            assert all(((mine[key] - here[key]).abs() < 1e-5).all() for key in mine)


def test_the_same_call_again_trains_nothing_and_says_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    heard = Heard()
    again = grown(folder, 1, 3, heard=heard)
    assert heard.trained() == set()
    assert again["points"] == result["points"]
    assert again["break_even"] == result["break_even"]


def test_further_numbers_of_users_leave_what_was_measured(tmp_path: Path) -> None:
    first = points_of(grown(tmp_path, 2))
    heard = Heard()
    more = points_of(grown(tmp_path, 1, 2, 3, heard=heard))
    assert "bank training" not in heard.trained()
    for name in NAMES:
        assert more[name, 2]["seconds"] == pytest.approx(first[name, 2]["seconds"])
        assert more[name, 2]["bytes"] == first[name, 2]["bytes"]
        assert more[name, 1]["seconds"] < more[name, 2]["seconds"] < more[name, 3]["seconds"]


class Stopped:
    """A `progress` that ends the call at the n-th step of a stage."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.left = stage, after

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Step]:
        def step(done: int, total: int) -> None:
            self.left -= stage == self.stage
            if self.left < 0:
                raise KeyboardInterrupt

        yield step


@pytest.mark.parametrize(("stage", "after"), [("bank training", 2), ("adaptation", 2), ("adaptation", 9)])
def test_a_stopped_call_goes_on_and_keeps_finished_users(tmp_path: Path, stage: str, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        grown(tmp_path, 1, 2, 3, heard=Stopped(stage, after))
    assert not (tmp_path / "growth.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapters/*/*.safetensors")}
    times = {path: read_json(path)["jobs"] for path in tmp_path.rglob("adapters/*/timing.json")}
    points = points_of(grown(tmp_path, 1, 2, 3))
    assert len(points) == 12
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for path, jobs in times.items():
        assert jobs.items() <= read_json(path)["jobs"].items()
    assert points["oppu q,v", 3]["updates_per_user"] == points["mta q,v", 3]["updates_per_user"] > 0


def test_one_user_without_a_time_does_not_make_the_others_look_cheap(tmp_path: Path) -> None:
    before = points_of(grown(tmp_path, 3))
    (path,) = tmp_path.glob("oppu-q-v/adapters/oppu/timing.json")
    jobs = read_json(path)["jobs"]
    jobs.pop(next(iter(jobs)))
    write_json(path, {"jobs": jobs})
    heard = Heard()
    points = points_of(grown(tmp_path, 3, heard=heard))
    assert heard.trained() == {"adaptation"}
    assert read_json(path)["jobs"].keys() > jobs.keys()
    seconds = sum(one["seconds"] for one in read_json(path)["jobs"].values())
    assert points["oppu q,v", 3]["seconds"] == pytest.approx(seconds)
    assert points["mta q,v", 3] == before["mta q,v", 3]


def test_a_later_call_adds_its_numbers_to_the_points(tmp_path: Path) -> None:
    grown(tmp_path, 3)
    assert [users for name, users in points_of(grown(tmp_path, 1)) if name == "oppu q,v"] == [1, 3]


def test_users_whose_time_was_not_kept_are_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = points_of(grown(tmp_path, 1, 3))
    for path in tmp_path.rglob("adapters/oppu/timing.json"):
        path.unlink()
    heard = Heard()
    points = points_of(grown(tmp_path, 1, 3, heard=heard))
    assert heard.trained() == {"adaptation"}
    assert "how long it took was not written down" in caplog.text
    for name in NAMES:
        assert points[name, 3]["seconds"] > points[name, 1]["seconds"] > 0
        assert points[name, 3]["bytes"] == before[name, 3]["bytes"]
    assert points["mta q,v", 3] == before["mta q,v", 3]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"target-000": {"seconds": 1}}'])
def test_damaged_times_of_matching_are_measured_again(tmp_path: Path, content: str) -> None:
    grown(tmp_path, 2)
    path = tmp_path / "mta-q-v" / "matching.json"
    path.write_text(content)
    assert points_of(grown(tmp_path, 2))["mta q,v", 2]["match_seconds"] > 0
    assert len(read_json(path)) >= 2


def test_changed_settings_are_measured_anew(tmp_path: Path) -> None:
    before = points_of(grown(tmp_path, 2))
    config = replace(RUN, adapt=replace(RUN.adapt, epochs=RUN.adapt.epochs + 1))
    after = points_of(grown(tmp_path, 2, config=config))
    for name in NAMES:
        assert after[name, 2]["updates_per_user"] > before[name, 2]["updates_per_user"]
        assert after[name, 2]["bank_seconds"] == before[name, 2]["bank_seconds"]


def test_users_without_a_training_example_are_counted_apart(tmp_path: Path) -> None:
    pool, targets = small_world()
    silent = HistoryItem("only", {"text": "It arrived on a Tuesday.", "score": "none"})
    people = [replace(targets[0], history=(silent,)), *targets[1:]]
    result = measure_growth(pool, people, RUN, tmp_path, users=(1, 3))
    points = points_of(result)
    for name in NAMES:
        assert len(adapters(tmp_path, name)) == 2
        assert [points[name, users]["not_adapted"] for users in (1, 3)] == [1, 1]
        assert points[name, 1]["updates_per_user"] == 0
        assert f"1 users of {name} have no adapter of their own." in markdown_growth(result)
    assert points["oppu q,v", 1]["bytes"] == points["oppu q,v", 1]["seconds"] == 0


# who is cheaper when ----------------------------------------------------------------------------------------------


def invented(bank: float, own: float, other: float, *, users: int = 10) -> list[dict[str, Any]]:
    """Points of one pair whose seconds and bytes are the same numbers."""
    rows = []
    for count in (1, users):
        for name, fixed, each in (("mta x", bank, own), ("oppu x", 0, other)):
            total = fixed + count * each
            rows.append(
                {"method": name, "users": count, "seconds": total, "bytes": total}
                | {"bank_seconds": fixed, "bank_bytes": fixed}
            )
    return rows


@pytest.mark.parametrize(
    ("bank", "own", "other"),
    [(100, 5, 10), (100, 7, 10), (101, 5, 10), (99, 5, 10), (0, 1, 2), (1000, 9, 10), (3, 1, 100)],
)
def test_break_even_is_the_first_number_of_users_that_costs_less(bank: int, own: int, other: int) -> None:
    wanted = next(n for n in range(1, 5000) if bank + n * own < n * other)
    for row in break_even(invented(bank, own, other)):
        assert row["users"] == wanted
        assert (row["bank"], row["mta_per_user"], row["oppu_per_user"]) == (bank, own, other)
        assert f"from {wanted} user{'s' * (wanted > 1)} on" in row["statement"]
        assert ("beyond the 10 measured" in row["statement"]) == (wanted > 10)


@pytest.mark.parametrize(("own", "other"), [(10, 10), (11, 10)])
def test_a_user_who_costs_as_much_never_breaks_even(own: int, other: int) -> None:
    for row in break_even(invented(100, own, other)):
        assert row["users"] is None
        assert "for no number of users" in row["statement"]


def test_costs_that_overlap_between_groups_give_no_number() -> None:
    """Groups of 1 and 9 users: 5 and 10 s a user with mta, 9 and 11 with oppu; the means, 9.5 and 10.8, say nothing."""
    points = invented(100, 5, 9)
    for row, total in zip(points[2:], (100 + 5 + 9 * 10, 9 + 9 * 11), strict=True):
        row |= {"seconds": total, "bytes": total}
    assert costs_per_user([row for row in points if row["method"] == "oppu x"], "seconds") == [9, 11]
    for row in break_even(points):
        assert row["users"] is None
        assert "overlap between groups" in row["statement"]


def test_the_published_sizes_break_even_as_their_formula_says() -> None:
    """Llama-3-8B, millions of values: 20.97 at rank 8 on all linear layers, half of it at rank 4, 3.41 on q and v."""
    bank, own, full, published = 50 * 20.97, 20.97 / 2, 20.97, 3.41
    assert {row["users"] for row in break_even(invented(bank, own, full))} <= {100, 101}
    assert {row["users"] for row in break_even(invented(bank, own, published))} == {None}


def test_every_pair_is_judged_by_time_and_by_bytes(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    rows = {(row["measure"], row["mta"], row["oppu"]): row for row in result["break_even"]}
    assert len(rows) == len(result["break_even"]) == 8
    points = points_of(result)
    for (measure, mta, rival), row in rows.items():
        fixed = points[mta, 3][f"bank_{measure}"]
        assert row["mta_per_user"] == pytest.approx((points[mta, 3][measure] - fixed) / 3)
        assert row["oppu_per_user"] == pytest.approx(points[rival, 3][measure] / 3)
        assert f"- {row['statement']}" in (folder / "table.md").read_text().splitlines()
    assert rows["bytes", "mta all-linear", "oppu q,v"]["oppu_per_user"] < points["mta all-linear", 3]["bytes"]


# refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [(), (0,), (1, 4), (-1, 2)])
def test_a_number_of_users_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, users: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="each from 1 to 3"):
        grown(tmp_path / "growth", *users)
    assert not (tmp_path / "growth").exists()


def test_leaks_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    pool, targets = small_world()
    with pytest.raises(DataError):
        measure_growth([*pool, targets[0]], targets, RUN, tmp_path / "growth", users=(1,))
    assert not (tmp_path / "growth").exists()


def test_damaged_records_of_an_earlier_call_are_done_without(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "growth"))
    for path in (folder / GROWTH, *folder.rglob("timing.json"), *folder.rglob("matching.json")):
        text = path.read_text()
        values = json.loads(text)
        if path.name == GROWTH:
            values["points"] = [3, {"users": "two"}, {"users": -1}, {}]
        else:
            rows = values.get("jobs", values)
            rows |= {
                name: {**row, "seconds": odd}
                for (name, row), odd in zip(rows.items(), ("x", [], 10**400), strict=False)
            }
        path.write_text(json.dumps(values))
    again = grown(folder, 3)
    assert [point["users"] for point in again["points"]] == [3] * 4


def test_the_folder_of_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="holds the results of a sweep"):
        grown(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
