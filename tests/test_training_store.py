"""Training that is cut off anywhere gives what an unbroken run gives; nothing stale or damaged is ever reused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from helpers import random_adapter, random_rows, tiny_base
from mta.base_model import BaseModel
from mta.config import QUERY_VALUE, EngineConfig, TrainConfig
from mta.errors import AdapterError
from mta.files import read_json, write_json, write_text
from mta.lora.adapter import recipe
from mta.training import Trained, TrainProgress, train
from mta.training_checkpoint import job_fingerprint
from mta.training_plan import TrainJob
from mta.training_store import CHECKPOINT, PLAN, TIMING, TrainedSet, train_and_store
from small_world import flip_bit

CONFIG = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=2, batch_size=2, target_modules=QUERY_VALUE)
OFTEN = EngineConfig(slots=2, tokens_per_batch=200, checkpoint_every_s=0.0)
NEVER = replace(OFTEN, checkpoint_every_s=1e9)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def four_jobs(base: BaseModel, *, lr: float = 1e-2) -> list[TrainJob]:
    """Three rounds to twelve; one over a frozen adapter, one that stops early."""
    beneath = recipe(random_adapter(base, QUERY_VALUE, seed=5, rank=3))
    config = replace(CONFIG, lr=lr)
    return [
        TrainJob("ann", random_rows(1, 3), config),
        TrainJob("bob", random_rows(2, 6), replace(config, epochs=4)),
        TrainJob("cy/../", random_rows(3, 4), config, frozen=beneath),
        TrainJob("dora", random_rows(4, 5), replace(config, epochs=6, lr=0.3), held_out=random_rows(5, 2)),
    ]


class Stopped(Exception):
    """Stands for a kill: nothing after it runs."""


def stop_after(rounds: int) -> Callable[[TrainProgress], None]:
    seen = 0

    def on_progress(progress: TrainProgress) -> None:
        nonlocal seen
        seen += 1
        if seen == rounds:
            raise Stopped

    return on_progress


class Watch:
    """Remembers the progress reports of a call."""

    def __init__(self) -> None:
        self.reports: list[TrainProgress] = []

    def __call__(self, progress: TrainProgress) -> None:
        self.reports.append(progress)

    @property
    def rounds(self) -> int:
        return len(self.reports)


def content(done: TrainedSet, base: BaseModel) -> dict[str, tuple[object, ...]]:
    """Everything but the wall time, tensors by exact value."""
    return {name: (stored.note, stored.load(base).fingerprint()) for name, stored in done.adapters.items()}


def interrupted(base: BaseModel, jobs: Sequence[TrainJob], folder: Path, *, rounds: int, engine=OFTEN) -> None:
    with pytest.raises(Stopped):
        train_and_store(base, jobs, folder, engine=engine, on_progress=stop_after(rounds))


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory) -> tuple[dict[str, tuple[object, ...]], int]:
    """The results of an undisturbed run, and its number of rounds."""
    watch = Watch()
    done = train_and_store(base, four_jobs(base), tmp_path_factory.mktemp("u"), engine=NEVER, on_progress=watch)
    assert not all(note.diverged for note, _ in content(done, base).values())
    return content(done, base), watch.rounds


# what is kept -----------------------------------------------------------------------------------------------------


def test_stored_adapters_are_those_of_train(base, tmp_path) -> None:
    jobs = four_jobs(base)
    direct: dict[str, Trained] = {done.job_id: done for done in train(base, jobs, engine=OFTEN)}
    stored = train_and_store(base, jobs, tmp_path, engine=OFTEN)
    assert list(stored.adapters) == [job.job_id for job in jobs]
    for name, one in stored.adapters.items():
        done, note = direct[name], one.note
        assert one.load(base).fingerprint() == done.adapter.fingerprint()
        assert (note.job_id, note.updates, note.tokens) == (name, done.updates, done.tokens)
        assert (note.first_loss, note.last_loss) == (done.losses[0], done.losses[-1])
        assert (note.held_out_losses, note.diverged) == (done.held_out_losses, False)
        assert note.delta_norm == done.adapter.norm()
        made = one.recipe(base, rank=2)
        assert (made.rank, made.make().fingerprint()) == (2, done.adapter.fingerprint())
    assert {path.name for path in tmp_path.iterdir()} == {
        TIMING, "ann.safetensors", "bob.safetensors", "cy%2F%2E%2E%2F.safetensors", "dora.safetensors"
    }  # fmt: skip
    assert stored.seconds > 0


def test_a_second_call_reads_everything_back(base, tmp_path) -> None:
    first = train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN)
    watch = Watch()
    second = train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN, on_progress=watch)
    assert watch.rounds == 0
    assert second == first


@pytest.mark.parametrize("name", ["unfinished", "timing", "", "..", "a/b", "ünï ☃", "A" * 300])
def test_any_user_id_gets_a_file_of_its_own_inside_the_folder(base, tmp_path, name: str) -> None:
    jobs = [TrainJob(one, random_rows(1, 6), CONFIG) for one in (name, "other")]
    folder = tmp_path / "in"
    interrupted(base, jobs, folder, rounds=2)
    done = train_and_store(base, jobs, folder, engine=OFTEN)
    assert set(done.adapters) == {name, "other"}
    assert len({stored.path for stored in done.adapters.values()}) == 2
    assert done.adapters[name].load(base).fingerprint() != done.adapters["other"].load(base).fingerprint()
    assert all(path.parent == folder for path in tmp_path.rglob("*") if path.is_file())
    assert train_and_store(base, jobs, folder, engine=OFTEN) == done


# cut off ----------------------------------------------------------------------------------------------------------


def test_a_run_cut_after_any_round_continues_where_it_was(base, tmp_path, unbroken) -> None:
    wanted, rounds = unbroken
    total = sum(note.tokens for note, _ in wanted.values())
    for cut in range(2, rounds + 1):
        folder = tmp_path / str(cut)
        interrupted(base, four_jobs(base), folder, rounds=cut)
        watch = Watch()
        done = train_and_store(base, four_jobs(base), folder, engine=OFTEN, on_progress=watch)
        assert content(done, base) == wanted
        assert [report.tokens for report in watch.reports[-1:]] == ([total] if watch.rounds else [])
        all_stored = cut == rounds
        assert watch.rounds == (0 if all_stored else rounds - (cut - 1)), "only what has no checkpoint is done again"
        assert not (folder / CHECKPOINT).exists()
        assert not (folder / PLAN).exists()


def test_a_run_cut_again_and_again_ends_the_same(base, tmp_path, unbroken) -> None:
    wanted, rounds = unbroken
    for _ in range(rounds - 1):
        interrupted(base, four_jobs(base), tmp_path, rounds=2)
        # each of these calls makes two rounds and keeps the first
    assert content(train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN), base) == wanted


def test_without_a_checkpoint_a_cut_run_starts_over_and_ends_the_same(base, tmp_path, unbroken) -> None:
    wanted, rounds = unbroken
    interrupted(base, four_jobs(base), tmp_path, rounds=rounds - 1, engine=NEVER)
    assert (tmp_path / "ann.safetensors").exists(), "somebody has finished"
    watch = Watch()
    assert content(train_and_store(base, four_jobs(base), tmp_path, engine=NEVER, on_progress=watch), base) == wanted
    assert watch.rounds == rounds


def counts(report: TrainProgress) -> tuple[int, ...]:
    return report.updates, report.total_updates, report.finished, report.jobs, report.tokens


def test_progress_goes_on_where_it_was_and_counts_finished_jobs_whole(base, tmp_path) -> None:
    """Who stops early has made all of her updates, as far as the bar is concerned."""
    jobs, watch = four_jobs(base), Watch()
    done = train_and_store(base, jobs, tmp_path / "whole", engine=NEVER, on_progress=watch)
    assert done.adapters["dora"].note.updates < jobs[3].total
    whole = [counts(report) for report in watch.reports]
    assert whole == sorted(whole)
    total, tokens = sum(job.total for job in jobs), sum(one.note.tokens for one in done.adapters.values())
    assert whole[0][:4] == (2, total, 0, 4)
    assert whole[-1] == (total, total, 4, 4, tokens)
    for cut in (2, 5, 9):
        interrupted(base, jobs, tmp_path / str(cut), rounds=cut)
        after = Watch()
        train_and_store(base, jobs, tmp_path / str(cut), engine=OFTEN, on_progress=after)
        assert [counts(report) for report in after.reports] == whole[cut - 1 :]


def test_a_round_does_not_look_at_all_jobs(base, monkeypatch) -> None:
    """With many users most are waiting or done, and there are as many rounds as users."""
    asked, total = 0, TrainJob.total.fget

    def counting(job: TrainJob) -> int:
        nonlocal asked
        asked += 1
        return total(job)

    monkeypatch.setattr(TrainJob, "total", property(counting))
    found = []
    for users in (6, 12):
        asked = 0
        jobs = [TrainJob(f"user {n}", random_rows(n, 2), replace(CONFIG, epochs=1)) for n in range(users)]
        assert len(list(train(base, jobs, engine=OFTEN, on_progress=Watch()))) == users
        found.append(asked)
    assert found[1] == 2 * found[0] > 0


def test_wall_time_of_cut_calls_is_counted(base, tmp_path) -> None:
    interrupted(base, four_jobs(base), tmp_path, rounds=4)
    watch = Watch()
    done = train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN, on_progress=watch)
    assert done.seconds == pytest.approx(watch.reports[-1].seconds)
    timing = read_json(tmp_path / TIMING)["jobs"]
    assert timing.keys() == done.adapters.keys()
    tokens = {name: stored.note.tokens for name, stored in done.adapters.items()}
    assert timing["bob"]["seconds"] == pytest.approx(done.seconds * tokens["bob"] / sum(tokens.values()))
    again = train_and_store(
        base, [*four_jobs(base), TrainJob("eve", random_rows(9, 2), CONFIG)], tmp_path, engine=OFTEN
    )
    assert again.seconds > done.seconds


def test_wall_time_of_replaced_adapters_is_not_counted(base, tmp_path) -> None:
    """The same folder with other settings: what the adapters there now took, and no more."""
    train_and_store(base, four_jobs(base)[:3], tmp_path, engine=OFTEN)
    watch = Watch()
    changed = four_jobs(base, lr=2e-2)[:3]
    done = train_and_store(base, changed, tmp_path, engine=OFTEN, on_progress=watch)
    assert done.seconds == pytest.approx(watch.reports[-1].seconds)
    fewer = train_and_store(base, changed[:2], tmp_path, engine=OFTEN)
    assert 0 < fewer.seconds < done.seconds
    assert train_and_store(base, changed, tmp_path, engine=OFTEN).seconds == done.seconds


# damaged ----------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_said_and_ignored(base, tmp_path, unbroken, caplog) -> None:
    """Any flipped bit: in the header, in the note (steps, losses, job ids) or in the tensors."""
    wanted, rounds = unbroken
    interrupted(base, four_jobs(base), tmp_path / "cut", rounds=7)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()}
    size = len(kept[CHECKPOINT])
    name = kept[CHECKPOINT].index(b'"sha256"')  # the checksum's own name: without it nothing is checked, nor amiss
    places = [place for place in range(3, 2200, 130) if not name <= place <= name + 7]
    damages = [(place, None) for place in places] + [(size - 5, None), (size // 2, None)]
    damages += [(None, kept[CHECKPOINT][:count]) for count in (0, 5, size // 2, size - 1)]
    for number, (place, data) in enumerate(damages):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, one in kept.items():
            (folder / name).write_bytes(one)
        if data is not None:
            (folder / CHECKPOINT).write_bytes(data)
        else:
            flip_bit(folder / CHECKPOINT, place=place, bit=number % 7)
        caplog.clear()
        watch = Watch()
        with caplog.at_level(logging.WARNING):
            done = train_and_store(base, four_jobs(base), folder, engine=NEVER, on_progress=watch)
        assert content(done, base) == wanted
        assert "ignoring the checkpoint" in caplog.text
        assert watch.rounds == rounds


def test_a_checkpoint_of_other_work_is_ignored(base, tmp_path, unbroken) -> None:
    wanted, _ = unbroken
    interrupted(base, four_jobs(base), tmp_path / "mine", rounds=5)
    interrupted(base, four_jobs(base, lr=3e-2), tmp_path / "other", rounds=5)
    (tmp_path / "mine" / CHECKPOINT).write_bytes((tmp_path / "other" / CHECKPOINT).read_bytes())
    assert content(train_and_store(base, four_jobs(base), tmp_path / "mine", engine=OFTEN), base) == wanted


DAMAGED = ("", "{", "[]", '{"jobs": ["zoe"], "fingerprint": "x"}', '{"jobs": []}', '{"jobs": {"ann": 1, "bob": {}}}')


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("name", [PLAN, TIMING])
def test_a_damaged_plan_or_clock_does_not_matter(base, tmp_path, unbroken, name: str, text: str) -> None:
    wanted, _ = unbroken
    interrupted(base, four_jobs(base), tmp_path, rounds=1)
    write_text(tmp_path / name, text)
    assert content(train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN), base) == wanted


def test_leftover_temporary_files_do_not_matter(base, tmp_path, unbroken) -> None:
    wanted, _ = unbroken
    interrupted(base, four_jobs(base), tmp_path, rounds=6)
    for name in (CHECKPOINT, PLAN, "ann.safetensors", "bob.safetensors"):
        (tmp_path / f".{name}.123-abcd.tmp").write_bytes(b"half a fi")
    assert content(train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN), base) == wanted


def test_a_damaged_adapter_is_trained_again(base, tmp_path, unbroken, caplog) -> None:
    train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN)
    path = tmp_path / "bob.safetensors"
    sound = path.read_bytes()
    for damage in (sound[:-9], b"", sound[:40] + b"\x00" + sound[41:]):
        path.write_bytes(damage)
        caplog.clear()
        watch = Watch()
        with caplog.at_level(logging.WARNING):
            done = train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN, on_progress=watch)
        assert "training bob again" in caplog.text
        assert {report.jobs for report in watch.reports} == {1}
        difference = compare(done.adapters["bob"].load(base), unbroken[0]["bob"], base, tmp_path)
        assert difference < 1e-5


def compare(adapter, wanted, base, folder: Path) -> float:
    """Largest difference to bob trained alone; his company changes rounding only."""
    (bob,) = train(base, [four_jobs(base)[1]], engine=OFTEN)
    assert wanted[0].updates == bob.updates
    pairs = zip(adapter.tensors(), bob.adapter.tensors(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def test_every_flipped_bit_of_an_adapter_is_noticed(base, tmp_path) -> None:
    (stored,) = train_and_store(base, four_jobs(base)[:1], tmp_path, engine=OFTEN).adapters.values()
    sound = stored.path.read_bytes()
    name = sound.index(b'"sha256"')  # the checksum's own name: without it nothing is checked, nor amiss
    for place in range(0, len(sound), 13):
        if not name <= place <= name + 7:
            flip_bit(stored.path, place=place, bit=place % 8)
            with pytest.raises(AdapterError, match=r"ann\.safetensors"):
                stored.load(base)
            stored.path.write_bytes(sound)
    assert stored.load(base).norm() == pytest.approx(stored.note.delta_norm)


def test_a_finished_file_lost_in_a_cut_run_is_made_again(base, tmp_path, unbroken) -> None:
    """The checkpoint says that ann is finished, and her file is gone: nobody may be missing in the end."""
    interrupted(base, four_jobs(base), tmp_path, rounds=7)
    (tmp_path / "ann.safetensors").unlink()
    done = train_and_store(base, four_jobs(base), tmp_path, engine=OFTEN)
    assert list(done.adapters) == ["ann", "bob", "cy/../", "dora"]
    found = content(done, base)
    assert {name: found[name] for name in found if name != "ann"} == {
        name: one for name, one in unbroken[0].items() if name != "ann"
    }
    assert found["ann"][0].updates == unbroken[0]["ann"][0].updates


# stale ------------------------------------------------------------------------------------------------------------

OTHER_VALUES = {
    "rank": 3, "alpha": 5.0, "target_modules": ("v_proj",), "train_a": False, "lr": 2e-2, "schedule": "linear",
    "warmup_ratio": 0.5, "epochs": 3, "batch_size": 1, "drop_last": True, "max_updates": 1, "min_updates": 5,
    "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "clip_norm": 0.01, "held_out_share": 0.5,
    "max_items": 2, "allow_proxy": True, "patience": 3, "seed": 1,
    "form": "core", "dropout": 0.5,
}  # fmt: skip


def test_every_setting_is_tried() -> None:
    assert set(OTHER_VALUES) == {field.name for field in fields(TrainConfig)}
    assert all(getattr(CONFIG, name) != value for name, value in OTHER_VALUES.items())


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_changed_setting_never_reuses_an_adapter(base, tmp_path, name: str) -> None:
    job = TrainJob("ann", random_rows(1, 3), CONFIG)
    changed = replace(job, config=replace(CONFIG, **{name: OTHER_VALUES[name]}))
    train_and_store(base, [job], tmp_path / "used", engine=OFTEN)
    watch = Watch()
    done = train_and_store(base, [changed], tmp_path / "used", engine=OFTEN, on_progress=watch)
    assert watch.rounds > 0
    assert content(done, base) == content(train_and_store(base, [changed], tmp_path / "new", engine=OFTEN), base)


def test_other_rows_or_another_adapter_beneath_are_another_job(base) -> None:
    rows = random_rows(1, 3)
    one, two = (recipe(random_adapter(base, QUERY_VALUE, seed=seed)) for seed in (1, 2))
    jobs = [
        TrainJob("ann", rows, CONFIG),
        TrainJob("bob", rows, CONFIG),
        TrainJob("ann", rows[:2], CONFIG),
        TrainJob("ann", rows[::-1], CONFIG),
        TrainJob("ann", rows[:2], CONFIG, held_out=rows[2:]),
        TrainJob("ann", rows, CONFIG, held_out=rows[2:]),
        TrainJob("ann", rows, CONFIG, frozen=one),
        TrainJob("ann", rows, CONFIG, frozen=two),
        TrainJob("ann", rows, CONFIG, init_key="bank"),
        TrainJob("ann", (replace(rows[0], answer=(5,)), *rows[1:]), CONFIG),
    ]
    assert len({job_fingerprint(job) for job in jobs}) == len(jobs)
    assert job_fingerprint(replace(jobs[0], rows=random_rows(1, 3))) == job_fingerprint(jobs[0])


def test_a_checkpoint_is_of_its_base_model_and_number_format(base, tmp_path) -> None:
    """Two models of one shape: what one has begun, the other must not finish."""
    for number, other in enumerate((tiny_base(torch.float32, seed=1), tiny_base(torch.bfloat16))):
        folder = tmp_path / str(number)
        interrupted(base, four_jobs(base), folder, rounds=6)
        done = train_and_store(other, four_jobs(other), folder, engine=OFTEN)
        fresh = train_and_store(other, four_jobs(other), tmp_path / f"fresh{number}", engine=OFTEN)
        assert content(done, other) == content(fresh, other)


def test_a_new_user_leaves_the_others_files_alone(base, tmp_path) -> None:
    jobs = four_jobs(base)
    train_and_store(base, jobs, tmp_path, engine=OFTEN)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.safetensors")}
    watch = Watch()
    eve = TrainJob("eve", random_rows(9, 4), CONFIG)
    done = train_and_store(base, [jobs[0], eve, *jobs[1:]], tmp_path, engine=OFTEN, on_progress=watch)
    assert list(done.adapters) == ["ann", "eve", "bob", "cy/../", "dora"]
    assert {(report.jobs, report.total_updates) for report in watch.reports} == {(1, eve.total)}
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.safetensors")}
    assert after.items() >= before.items()
    assert set(after) - set(before) == {"eve.safetensors"}


def test_a_new_user_in_the_middle_of_a_cut_run(base, tmp_path) -> None:
    """Finished users stay; the unfinished start over in the new company, and nobody is missing."""
    interrupted(base, four_jobs(base), tmp_path, rounds=7)
    before = (tmp_path / "ann.safetensors").stat().st_mtime_ns
    jobs = [*four_jobs(base), TrainJob("eve", random_rows(9, 4), CONFIG)]
    done = train_and_store(base, jobs, tmp_path, engine=OFTEN)
    assert list(done.adapters) == [job.job_id for job in jobs]
    assert (tmp_path / "ann.safetensors").stat().st_mtime_ns == before
    for job in jobs:
        (alone,) = train(base, [job], engine=OFTEN)
        pairs = zip(done.adapters[job.job_id].load(base).tensors(), alone.adapter.tensors(), strict=True)
        assert max(float((a - b).abs().max()) for (_, a), (_, b) in pairs) < 1e-5


def test_fewer_users_than_planned_is_a_new_plan(base, tmp_path, unbroken) -> None:
    interrupted(base, four_jobs(base), tmp_path, rounds=3)
    left = four_jobs(base)[1:]
    assert list(train_and_store(base, left, tmp_path, engine=OFTEN).adapters) == ["bob", "cy/../", "dora"]
    write_json(tmp_path / PLAN, {"jobs": ["bob"], "fingerprint": "made up"})
    assert list(train_and_store(base, left, tmp_path, engine=OFTEN).adapters) == ["bob", "cy/../", "dora"]
