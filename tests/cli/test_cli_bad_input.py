"""Bad input never gives a traceback: exit code 2, one line that says what is wrong, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_world import QUICK, QUICK_ADAPT, QUICK_BANK, film_record, good, mta, refused, snapshot, write_films
from mta.folder_lock import LOCK, sole_use
from mta.tensor_files import load_tensors, save_tensors
from mta.tiny_model import byte_tokenizer, tiny_llama

METHODS = ("--method", "mta")


def run(films: Any, out: Path, *more: object, targets: Path | None = None, pool: Path | None = None) -> str:
    """Run on files of which one is bad; the run folder must stay away."""
    files = ("--pool", pool or films.pool, "--targets", targets or films.targets)
    message = refused("run", "lamp-2", *files, *QUICK, *METHODS, "--out", out, *more)
    assert not out.exists()
    return message


def test_missing_file(films: Any, tmp_path: Path) -> None:
    message = run(films, tmp_path / "out", targets=tmp_path / "no_questions.json")
    assert "no_questions.json" in message
    assert "No such file" in message


def test_file_that_was_cut_in_the_middle(films: Any, tmp_path: Path) -> None:
    cut = write_films(tmp_path / "t_questions.json", [film_record("dan"), film_record("eve")])
    cut.write_text(cut.read_text()[:-200])
    assert "cut off" in run(films, tmp_path / "out", targets=cut)


def test_question_without_gold(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), film_record("eve")], golds=["q-dan"])
    message = run(films, tmp_path / "out", targets=path)
    assert "without a gold answer ('q-eve')" in message


def test_no_gold_file_at_all(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan")])
    path.with_name("t_outputs.json").unlink()
    assert "t_outputs.json" in run(films, tmp_path / "out", targets=path)


def test_gold_without_question(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan")], golds=["q-dan", "q-gone"])
    assert "gold answers without a question ('q-gone')" in run(films, tmp_path / "out", targets=path)


def test_unknown_task(films: Any, tmp_path: Path) -> None:
    message = refused("run", "lamp-9", *films.both, *QUICK, "--out", tmp_path / "out")
    assert "unknown task 'lamp-9'" in message
    assert "lamp-2" in message


def test_unknown_method_is_noticed_before_anything_is_trained(films: Any, tmp_path: Path) -> None:
    message = run(films, tmp_path / "out", "--method", "magic")
    assert "unknown method 'magic'" in message
    assert "merged-only" in message


def test_task_adapter_beneath_no_row_of_the_table(films: Any, tmp_path: Path) -> None:
    message = run(films, tmp_path / "out", "--task-adapt", "population")
    assert "beneath oppu, oppu-k0, per-pcs only" in message


def test_malformed_record_is_refused_and_can_be_skipped(films: Any, tmp_path: Path) -> None:
    bad = film_record("eve") | {"input": "What is this film?"}
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), bad])
    message = run(films, tmp_path / "out", targets=path)
    assert "'q-eve'" in message
    done = good(
        *("run", "lamp-2", "--pool", films.pool, "--targets", path, *QUICK, "--method", "base"),
        *("--skip-malformed", "--json", "--out", tmp_path / "out"),
    )
    assert done.json["queries"] == 1
    assert "1 records left out" in done.err


def test_gold_that_is_no_label(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan")])
    outputs = path.with_name("t_outputs.json")
    outputs.write_text(outputs.read_text().replace("comedy", "western"))
    assert "'western'" in run(films, tmp_path / "out", targets=path)


def test_empty_history(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan", items=0), film_record("eve")])
    message = run(films, tmp_path / "out", targets=path)
    assert "'dan' has an empty history" in message


def test_history_of_one_item_works_with_one_example_and_nothing_shown(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan", items=1)])
    bank = tmp_path / "bank"
    good("bank", "build", "--pool", films.pool, "--task", "lamp-2", *QUICK[:-4], "--out", bank)
    done = good(*("adapt", "--bank", bank, "--targets", path, *QUICK[-4:]), "--out", tmp_path / "adapters", "--json")
    assert [(row["user_id"], row["updates"], row["note"]) for row in done.json] == [("dan", 1, "")]


def test_repeated_user_ids(films: Any, tmp_path: Path) -> None:
    path = tmp_path / "processed.json"
    record = {"user_id": "dan", "profile": film_record("dan")["profile"], "query": []}
    path.write_text(json.dumps([record, record]))
    assert "user ids more than once: 'dan'" in run(films, tmp_path / "out", targets=path)


def test_repeated_question_ids(films: Any, tmp_path: Path) -> None:
    path = write_films(
        tmp_path / "t_questions.json", [film_record("dan"), film_record("eve", record_id="q-dan")], golds=["q-dan"]
    )
    assert "question ids more than once: 'q-dan'" in run(films, tmp_path / "out", targets=path)


def test_target_who_is_in_the_pool(films: Any, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), film_record("ada", items=4)])
    message = run(films, tmp_path / "out", targets=path)
    assert "shared user ids ('ada')" in message
    done = good(
        *("run", "lamp-2", "--pool", films.pool, "--targets", path, *QUICK, "--method", "base", "--drop-leaks"),
        *("--out", tmp_path / "out", "--json"),
    )
    assert done.json["run"]["pool users"] == 2
    assert "1 of 3 users left out" in done.err


def test_same_person_under_another_name_is_noticed(films: Any, tmp_path: Path) -> None:
    twin = film_record("ada", items=4) | {"user_id": "somebody else", "id": "q-twin"}
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), twin])
    assert "of one person ('ada' = 'somebody else')" in run(films, tmp_path / "out", targets=path)


def test_more_anchors_merged_than_asked_for(films: Any, tmp_path: Path) -> None:
    message = run(films, tmp_path / "out", "--top-k", 5)
    assert "top_k is 5, more than the 2 anchors" in message


def test_more_anchors_merged_than_the_bank_has(films: Any, finished_run: Path) -> None:
    message = refused("match", "--bank", finished_run / "bank", "--targets", films.targets, "--top-k", 5)
    assert "top_k is 5 but the bank has 2 anchors" in message


def test_repeats_that_cannot_be(films: Any, tmp_path: Path) -> None:
    run = ("run", "lamp-2", *films.both, *QUICK, "--out", tmp_path / "run")
    assert "there is one; add --seeds" in refused(*run, "--once", "mta")
    assert "--once oppu is no row of this table" in refused(*run, "--seeds", 2, "--once", "oppu")
    assert "writes the files of one run, not of 2" in refused(*run, "--seeds", 2, "--layout", "reference")


def test_bank_larger_than_the_pool(films: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refused("run", "lamp-2", *films.both, *QUICK, "--bank-size", 9, *METHODS, "--out", out)
    assert "asks for 9 clusters, but the pool has 3 users" in message
    assert not out.exists()


def test_values_out_of_range(films: Any, tmp_path: Path) -> None:
    assert "bank_size is 0" in run(films, tmp_path / "out", "--bank-size", 0)
    assert "lr is -1.0" in run(films, tmp_path / "out", "--adapt-lr", -1.0)
    assert "max_tokens is 3" in run(films, tmp_path / "out", "--max-tokens", 3)
    assert "unknown device" in run(films, tmp_path / "out", "--device", "tpu")


def test_settings_that_are_no_number_or_no_share(films: Any, tmp_path: Path) -> None:
    assert "scale is nan" in run(films, tmp_path / "out", "--scale", "nan")
    assert "lr is inf" in run(films, tmp_path / "out", "--bank-lr", "inf")
    assert "seed is -1" in run(films, tmp_path / "out", "--seed", -1)


def test_pickle_weights(films: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = run(films, tmp_path / "out", "--base", folder)
    assert "pickle" in message
    assert "safetensors" in message


def test_base_that_is_nowhere(films: Any, tmp_path: Path) -> None:
    for name in (tmp_path / "nothing-here", "~no-such-user/x"):
        assert "no base model" in run(films, tmp_path / "out", "--base", name)


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that is not the one of the finished run."""
    folder = tmp_path_factory.mktemp("base") / "other"
    tiny_llama(seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_demo_invents_nobody_before_it_has_a_model(tmp_path: Path) -> None:
    assert "no base model" in refused("demo", "--base", tmp_path / "nope", "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_split_that_cannot_be_written_writes_neither_side(tmp_path: Path) -> None:
    def record(name: str, *asked: str) -> dict[str, Any]:
        queries = [{"id": key, "input": film_record(name)["input"], "gold": "comedy"} for key in asked]
        return {"user_id": name, "profile": film_record(name)["profile"], "query": queries}

    path, out = tmp_path / "processed.json", tmp_path / "out"
    path.write_text(json.dumps([record("ada"), record("ben"), record("dan", "same"), record("eve", "same")]))
    words = ("data", "split", path, "--task", "lamp-2", "--count", 2, "--history-length", 3, "--out", out)
    message = refused(*words)
    assert "target_questions.json: got 1 question ids more than once: 'same'" in message
    assert not out.exists()


def test_bank_of_another_base_model(films: Any, finished_run: Path, tmp_path: Path, other_base: Path) -> None:
    message = refused(
        *("adapt", "--bank", finished_run / "bank", "--targets", films.targets, "--base", other_base),
        *("--out", tmp_path / "adapters"),
    )
    assert "trained on base model 'tiny-random'" in message
    assert not (tmp_path / "adapters").exists()


def _rewrite(path: Path, *, note: dict[str, Any] | None = None, nan: bool = False) -> None:
    """Write an adapter file again with a sound checksum, but another note or a NaN inside."""
    tensors, metadata = load_tensors(path)
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    if nan:
        next(iter(changed.values()))[0, 0] = torch.nan
    old = json.loads(metadata["note"])
    save_tensors(path, changed, metadata={"note": json.dumps({**old, **(note or {})})})


def test_adapter_of_another_base_model(films: Any, run_copy: Path, tmp_path: Path) -> None:
    _rewrite(run_copy / "adapters" / "mta" / "dan.safetensors", note={"base": "other", "base_fingerprint": "0" * 64})
    out = tmp_path / "peft"
    assert "trained on base model 'other'" in refused("export", run_copy, "--user", "dan", "--out", out)
    assert not out.exists()


def test_nan_in_an_adapter_file(films: Any, run_copy: Path, tmp_path: Path) -> None:
    _rewrite(run_copy / "adapters" / "mta" / "dan.safetensors", nan=True)
    assert "NaN" in refused("export", run_copy, "--user", "dan", "--out", tmp_path / "peft")
    answers = tmp_path / "answers.jsonl"
    message = refused(
        *("generate", "--bank", run_copy / "bank", "--adapters", run_copy / "adapters"),
        *("--targets", films.targets, "--out", answers),
    )
    assert "NaN" in message
    assert not answers.exists()
    assert not (tmp_path / "peft").exists()


def test_adapter_under_somebody_elses_name(films: Any, run_copy: Path, tmp_path: Path) -> None:
    folder = run_copy / "adapters" / "mta"
    shutil.copy(folder / "eve.safetensors", folder / "dan.safetensors")
    message = refused("export", run_copy, "--user", "dan", "--out", tmp_path / "peft")
    assert "adapter of 'eve', not of 'dan'" in message


def test_bank_file_that_was_cut(films: Any, run_copy: Path) -> None:
    path = run_copy / "bank" / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    message = refused("match", "--bank", run_copy / "bank", "--targets", films.targets)
    assert "damaged" in message


STAGES = {
    "match": ("--out", "out"),
    "merge": ("--user", "ada", "--out", "out"),
    "adapt": ("--out", "out"),
    "adapt alone": ("--adapt-only", "--out", "out"),
    "generate": ("--method", "merged-only", "--out", "out"),
    "generate stored": ("--adapters", "adapters", "--out", "out"),
    "generate base": ("--method", "base", "--out", "out"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_serves_an_anchor(
    films: Any, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(run_copy)
    before = snapshot(run_copy)
    anchors = [row["user_id"] for row in json.loads((run_copy / "bank" / "bank.json").read_text())["anchors"]]
    assert "ada" in anchors
    renamed = film_record("ada", items=4) | {"user_id": "dan"}
    for record, said in ((film_record("ada"), "'ada' = anchor 'ada'"), (renamed, "'dan' = anchor 'ada'")):
        path = write_films(tmp_path / "t_questions.json", [record, film_record("eve")])
        words = [record["user_id"] if word == "ada" else word for word in STAGES[stage]]
        message = refused(stage.split()[0], "--bank", "bank", "--targets", path, *words)
        assert "target users are anchors of the bank" in message
        assert said in message
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("method", "why"),
    [("mta", "anchors that are on record"), ("adapt-only", "merges no anchors"), ("base", "merges no anchors")],
)
@pytest.mark.parametrize("option", [("--merge", "linear"), ("--scale", 0.5), ("--top-k", 1)])
def test_options_of_merging_are_refused_where_nothing_is_merged_anew(
    films: Any, finished_run: Path, tmp_path: Path, method: str, why: str, option: tuple[str, object]
) -> None:
    words = ("generate", "--bank", finished_run / "bank", "--targets", films.targets, "--method", method)
    message = refused(*words, "--adapters", finished_run / "adapters", *option, "--out", tmp_path / "answers.jsonl")
    assert f"{option[0]} has no use with method {method}" in message
    assert why in message
    assert not (tmp_path / "answers.jsonl").exists()


def test_no_such_user(films: Any, finished_run: Path, tmp_path: Path) -> None:
    assert "no user 'zoe'" in refused(
        *("merge", "--bank", finished_run / "bank", "--targets", films.targets, "--user", "zoe"),
        *("--out", tmp_path / "merged"),
    )
    assert "user 'zoe'" in refused("export", finished_run, "--user", "zoe", "--out", tmp_path / "peft")


def test_output_folder_below_a_file(films: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    message = refused("run", "lamp-2", *films.both, *QUICK, *METHODS, "--out", tmp_path / "file" / "run")
    assert "cannot create folder" in message
    assert (tmp_path / "file").read_text() == "kept"


def test_full_disk_keeps_what_was_there(
    films: Any, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(run_copy)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ("run", "lamp-2", *films.both, *QUICK, *METHODS, "--adapt-lr", 0.5, "--out", run_copy)
    assert "No space left on device" in refused(*words)
    assert snapshot(run_copy) == before
    assert "No space left" in refused("export", run_copy, "--user", "dan", "--out", tmp_path / "peft")
    assert not snapshot(tmp_path / "peft")


def test_full_disk_in_the_middle_is_made_good_by_the_same_command(
    films: Any, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "mta", "--method", "base", "--out", tmp_path / "run")
    replace, count = os.replace, [0]

    def breaks_at_the_fourth(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", breaks_at_the_fourth)
        assert "No space left on device" in refused(*words)
    assert not list(tmp_path.rglob("*.tmp"))
    good(*words)
    one, two = (json.loads((folder / "scores.json").read_text()) for folder in (tmp_path / "run", finished_run))
    assert one["methods"]["mta"]["metrics"] == two["methods"]["mta"]["metrics"]


def test_run_folder_of_another_task(films: Any, run_copy: Path, tmp_path: Path) -> None:
    before = snapshot(run_copy)
    rows = [{"user_id": name, "input": f"{name} asks {k}", "output": f"{name} says {k}"} for name in "ab" for k in "12"]
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)))
    rows = [{**row, "user_id": row["user_id"] * 2, "input": row["input"] * 2} for row in rows]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(map(json.dumps, rows)))
    message = refused(
        *("run", "own", "--pool", pool, "--targets", own, "--queries-per-user", 1, *QUICK, *METHODS, "--out", run_copy)
    )
    assert "holds a run of task 'lamp-2', not 'own'" in message
    assert snapshot(run_copy) == before


def test_run_folder_of_another_base_model(films: Any, run_copy: Path, other_base: Path) -> None:
    before = snapshot(run_copy)
    message = refused("run", "lamp-2", *films.both, *QUICK, "--base", other_base, *METHODS, "--out", run_copy)
    assert "holds a run on base model 'tiny-random'" in message
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("content", ["[]", "3", '{"config": []}'])
def test_run_folder_whose_config_is_none(films: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(content)
    message = refused("run", "lamp-2", *films.both, *QUICK, *METHODS, "--out", tmp_path / "out")
    assert "config.json is not the record of a run" in message
    assert snapshot(tmp_path / "out") == {"config.json": content.encode()}


def test_bank_of_another_task_or_base_model_is_not_replaced(
    films: Any, run_copy: Path, tmp_path: Path, other_base: Path
) -> None:
    bank = run_copy / "bank"
    before = snapshot(bank)
    words = ("bank", "build", *QUICK_BANK, "--out", bank)
    message = refused(*words, "--pool", films.pool, "--task", "lamp-2", "--base", other_base)
    assert "holds a bank of task 'lamp-2' on base model 'tiny-random'" in message
    rows = [
        {"user_id": name, "input": f"{name} asks {k}", "output": f"{name} says {k}"} for name in "abc" for k in "12"
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)))
    message = refused(*words, "--pool", own, "--task", "own", "--base", "tiny-random")
    assert "not of 'own' on 'tiny-random'" in message
    assert snapshot(bank) == before


@pytest.mark.parametrize("odd", ["x", 2.5, [], {"dan": 3}, 10**400, None])
def test_damaged_records_of_an_earlier_call_are_done_without(films: Any, run_copy: Path, odd: Any) -> None:
    adapters = run_copy / "adapters"
    before = json.loads((adapters / "mta.json").read_text())
    jobs = json.loads((adapters / "mta" / "timing.json").read_text())["jobs"]
    for name in ("users", "skipped", "matches", "histories"):
        (adapters / "mta.json").write_text(json.dumps({**before, name: odd}))
        jobs = {user_id: {**job, "seconds": odd} for user_id, job in jobs.items()}
        (adapters / "mta" / "timing.json").write_text(json.dumps({"jobs": jobs}))
        good("run", "lamp-2", *films.both, *QUICK, *METHODS, "--out", run_copy)
        assert json.loads((adapters / "mta.json").read_text())["users"] == before["users"]


def test_an_output_that_is_an_input_is_refused(films: Any, finished_run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(films.targets, tmp_path / "mine.json"))
    before = own.read_bytes()
    message = refused("match", "--bank", finished_run / "bank", "--targets", own, "--out", own)
    assert "which this call reads as targets" in message
    assert own.read_bytes() == before


def test_data_that_is_there_is_not_replaced(films: Any) -> None:
    folder, before = films.pool.parent, films.pool.read_bytes()
    for words in (("split", films.pool, "--task", "lamp-2"), ("personas", "--task", "lamp-2")):
        assert "pool_questions.json is there already" in refused("data", *words, "--out", folder)
    assert films.pool.read_bytes() == before


def test_an_adapter_that_is_there_is_not_replaced(finished_run: Path, tmp_path: Path) -> None:
    good("export", finished_run, "--user", "dan", "--out", tmp_path / "peft")
    assert "holds an adapter already" in refused("export", finished_run, "--user", "eve", "--out", tmp_path / "peft")


def test_queries_that_an_adapter_was_trained_on_are_not_scored(tmp_path: Path) -> None:
    """Other lines held out in adaptation than in answering: the answers would be known by heart."""
    for name, people in (("pool", ("ada", "ben", "cleo")), ("target", ("dan", "eve"))):
        lines = [
            {"user_id": who, "input": f"{who} asks {n}", "output": f"{who} says {n}"}
            for who in people
            for n in range(5)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bank, targets = tmp_path / "bank", ("--targets", tmp_path / "target.jsonl")
    built = ("bank", "build", "--task", "own", "--pool", tmp_path / "pool.jsonl", "--base", "tiny-random", *QUICK_BANK)
    good(*built, "--out", bank)
    known = ("--bank", bank, *targets, "--base", "tiny-random")
    good("adapt", *known, *QUICK_ADAPT, "--out", tmp_path / "adapters")
    asked = ("generate", *known, "--adapters", tmp_path / "adapters", "--queries-per-user", 2)
    message = refused(*asked, "--out", tmp_path / "answers.jsonl")
    assert "'dan' was trained on another history" in message
    assert "--queries-per-user" in message
    good("adapt", *known, *QUICK_ADAPT, "--queries-per-user", 2, "--out", tmp_path / "adapters")
    good(*asked, "--out", tmp_path / "answers.jsonl")


def test_usage_errors_are_2_as_well() -> None:
    assert mta("run", "lamp-2").code == 2
    assert mta("nonsense").code == 2
    assert mta("run", "lamp-2", "--users", "many").code == 2


@pytest.mark.parametrize("inside", ["", "bank", "adapters/mta"])
def test_a_folder_in_which_another_call_is_at_work(films: Any, tmp_path: Path, inside: str) -> None:
    out = tmp_path / "out"
    with sole_use(out / inside):
        message = refused("run", "lamp-2", *films.both, *QUICK, *METHODS, "--out", out)
        assert f"{out / inside} is in use" in message
    good("run", "lamp-2", *films.both, *QUICK, *METHODS, "--out", out)
    assert not [path for path in out.rglob("*") if path.name == LOCK]
