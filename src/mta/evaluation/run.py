"""A whole comparison in one folder: bank, methods, predictions, scores, table, report. Resumable at every step.

    runs/<name>/config.json         everything that decides the result, with versions and seeds
               bank/                stage 1
               matches.json         stage 2: anchors, similarities and weights of each user; cat against linear
               adapters/<method>/   stage 3, one file per user; <method>.json: what they were trained over
               predictions/         one file per method
               predictions.jsonl  scores.json  table.md  table.csv  report.html

Repeated runs under several seeds are such folders in `seed-<seed>/`; their scores are pooled in the folder above.

The same call again continues where a killed one stopped. Every part carries a fingerprint of what decided it, so that a
changed setting never reuses a stale part.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mta.bank import Bank
from mta.bank_building import Encoders, build_bank
from mta.base_model import BaseModel, load_base_model
from mta.baselines.methods import PARTS, SETS, Method, depends_on_seed, find_method, methods_for
from mta.config import BankConfig, EngineConfig, MergeConfig, TrainConfig, changed_settings, to_dict
from mta.data.people import person_names, rule_for
from mta.data.splits import answers_in_own_history, check_disjoint
from mta.encoders import load_encoder
from mta.errors import ConfigError, DataError
from mta.evaluation.cases import build_cases
from mta.evaluation.predict import finished, predict
from mta.evaluation.predictions_file import require_finite, write_predictions
from mta.evaluation.released_scores import released_scores
from mta.evaluation.report import write_report
from mta.evaluation.restore import record_adapters
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.slices import slice_scores, usual_partitions
from mta.evaluation.table import (
    MERGES_APART,
    csv_table,
    cut_prompts,
    markdown_comparisons,
    markdown_slices,
    markdown_table,
    not_adapted,
)
from mta.files import folder_if_used, read_json, sha256_json, write_json, write_text
from mta.lora.adapter import Adapter
from mta.merging import Match, merge_distance
from mta.personalize import PersonalizedUsers, Resources, match_users
from mta.progress import Progress, silent
from mta.records import Prediction, User
from mta.runtime import versions
from mta.tasks import get_task
from mta.tasks.released import RELEASED, released_answers
from mta.tasks.task import Task
from mta.vector_cache import default_cache

log = logging.getLogger(__name__)

DEFAULT_METHODS = SETS["usual"]
JUDGED = "mta"
"""The method that is compared with every other one in the table."""
CONFIG = "config.json"
SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, apart from the data."""

    task_id: str
    """What is asked, for example "lamp-2"."""
    base: str
    """Base model: a short name from `mta models`, a hub id or a path."""
    device: str = "auto"
    """Where to compute: "auto", "cpu", "cuda"."""
    dtype: str = "auto"
    """Number format of the base model: "auto", "float32" or "bfloat16"."""
    bank: BankConfig = field(default_factory=BankConfig)
    """Stage 1."""
    top_k: int = 2
    """Anchors merged per user (K); encoder and document of the match are the bank's."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    """Stage 2."""
    adapt: TrainConfig = field(default_factory=TrainConfig)
    """Stage 3."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """Rows of the table; controls that mean nothing for the task are left out."""
    seeds: tuple[int, ...] = ()
    """Seeds of repeated runs, each with a bank of its own; () is one run with the seeds of the settings."""
    answers: str = "official"
    """How answers are given and read: "official", or "released" as the authors' scripts do (`tasks.released`)."""
    once: tuple[str, ...] = ()
    """Methods that answer under the first of the seeds only, to save time; names in `SETS` stand for several."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Packing; it decides speed only."""

    def __post_init__(self) -> None:
        if self.answers not in ("official", RELEASED):
            raise ConfigError(f"answers is {self.answers!r}; it must be official or {RELEASED}")

    @property
    def task(self) -> Task:
        """What is asked, with the answers asked for.

        Raises:
            NotFound: there is no such task.
        """
        task = get_task(self.task_id)
        return released_answers(task) if self.answers == RELEASED else task

    def seeded(self, seed: int) -> RunConfig:
        """Return the settings of one repeated run: anchors, initial values, orders and options depend on `seed`."""
        bank = replace(
            self.bank,
            anchors=replace(self.bank.anchors, seed=seed),
            train=replace(self.bank.train, seed=seed),
            population_train=replace(self.bank.population_train, seed=seed),
        )
        return replace(self, seeds=(), bank=bank, adapt=replace(self.adapt, seed=seed))


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves behind."""

    folder: Path
    scores: dict[str, Any]
    table: str
    """Markdown."""


def run(
    pool: Sequence[User],
    targets: Sequence[User],
    config: RunConfig,
    folder: Path,
    *,
    base: BaseModel | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Build the bank, personalize the targets with every method, answer their queries, and score.

    Args:
        pool: users for the bank.
        targets: users to serve, with queries and gold answers.
        config: everything else that decides the result.
        folder: run folder; created if missing, continued if there.
        base: the loaded base model, if the caller has it.
        notes: further rows for the run card, for example the command and what was capped.
        progress: told about each stage.

    Raises:
        DataError: a target is also in the pool, a query has no gold answer, a target has no history.
        ConfigError: top_k is larger than the bank, or the folder holds a run of another task or base model.
    """
    started = time.monotonic()
    task = config.task
    methods = methods_for(task, config.methods)
    repeated = [name for name in methods if depends_on_seed(name) and name not in methods_for(task, config.once)]
    parts: list[_Part] = []
    if config.seeds:
        base = _refuse_or_load(folder, config, base)
    for seed in config.seeds or (None,):
        names = repeated if parts else methods
        one = config if seed is None else config.seeded(seed)
        place = folder if seed is None else folder / f"seed-{seed}"
        parts.append(_answer_all(names, pool, targets, one, place, base, progress))
    if config.seeds:
        _write_config(folder, config, parts[0].resources.base)
    records = [_joined(name, parts, config.seeds) for name in methods]
    scores = _score(records, task, config, targets, parts[0])
    if task.form == RELEASED:
        scores["released"] = {record.name: released_scores(task, record.predictions) for record in records}
    scores["run"] = {
        **(notes or {}),
        **_run_card(config, parts, targets, scores, time.monotonic() - started),
    }
    return _write_results(folder, scores, list(parts[0].records.values()), targets, task)


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the repeated runs."""

    resources: Resources
    records: Mapping[str, MethodRecord]
    matches: Mapping[str, Match]
    distances: Mapping[str, float]
    """How far the two merges are apart, mean over users."""


def _answer_all(
    methods: Sequence[str],
    pool: Sequence[User],
    targets: Sequence[User],
    config: RunConfig,
    folder: Path,
    base: BaseModel | None,
    progress: Progress,
) -> _Part:
    """Do one run up to the answers of every method."""
    resources = open_run(pool, targets, config, folder, base=base, progress=progress)
    matches = match_users(targets, resources)
    distances = _write_matches(folder, matches, resources.need_bank())
    records = {name: method_record(name, find_method(name), targets, resources, folder) for name in methods}
    write_predictions(folder / "predictions.jsonl", {name: record.predictions for name, record in records.items()})
    return _Part(resources, records, matches, distances)


def _joined(name: str, parts: Sequence[_Part], seeds: Sequence[int]) -> MethodRecord:
    """Pool a method's answers of repeated runs; costs are means over them."""
    records = [part.records[name] for part in parts if name in part.records]
    if not seeds or not depends_on_seed(name):
        return records[0]
    return replace(
        records[0],
        predictions=[row for record in records for row in record.predictions],
        seed_of=[seed for seed, record in zip(seeds, records, strict=False) for _ in record.predictions],
        updates_per_user=_mean([record.updates_per_user for record in records]),
        adapter_bytes_per_user=_mean([record.adapter_bytes_per_user for record in records]),
        train_seconds=_mean([record.train_seconds for record in records]),
        shared_train_seconds=_mean([record.shared_train_seconds for record in records]),
        predict_seconds=_mean([record.predict_seconds for record in records]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def open_run(
    pool: Sequence[User],
    targets: Sequence[User],
    config: RunConfig,
    folder: Path,
    *,
    base: BaseModel | None = None,
    bank_folder: Path | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> Resources:
    """Check everything that can be refused beforehand, build or load the bank, and return what methods need.

    Other arguments and errors as for `run`.

    Args:
        bank_folder: where the bank goes; in `folder` if not given.
        work: where the bank's trainings are kept, see `build_bank`.
    """
    task = config.task
    _check_people(pool, targets, task)
    _check_settings(config, methods_for(task, config.methods))
    with folder_if_used(folder):
        base = _refuse_or_load(folder, config, base)
        store = _BankPlace(bank_folder or folder / "bank", work)
        resources = _resources(pool, task, config, folder, store, base=base, progress=progress)
        resources.need_bank().check_targets(targets)
        _write_config(folder, config, base)
    return resources


def _check_people(pool: Sequence[User], targets: Sequence[User], task: Task) -> None:
    if not targets:
        raise DataError("there are no target users; give a file with users to serve")
    check_disjoint(pool, targets, rule=rule_for(task.task_id))
    for user in targets:
        if not user.history:
            raise DataError(
                f"target user {user.user_id!r} has an empty history, so there is nothing to personalize from; "
                "leave this user out, or serve the base model"
            )
        missing = [query.query_id for query in user.queries if query.gold is None]
        if missing:
            raise DataError(
                f"query {missing[0]!r} of user {user.user_id!r} has no gold answer; a run is scored - put the answers "
                "beside the questions (*_outputs.json) or name them with --golds"
            )
    if not any(user.queries for user in targets):
        raise DataError(
            "no target user has a query; a run needs queries with gold answers - give a file that has them, or, for "
            "own data, hold out the last lines of each user with --queries-per-user"
        )


def _check_settings(config: RunConfig, methods: Sequence[str]) -> None:
    """Refuse before the bank is trained what cannot be matched or adapted after."""
    largest = config.bank.anchors.bank_size
    if not 1 <= config.top_k <= largest:
        raise ConfigError(
            f"top_k is {config.top_k} but the bank will have at most {largest} anchors; choose 1 to {largest}, or "
            "build a larger bank"
        )
    missing = sorted(set(config.bank.train.target_modules) - set(config.adapt.target_modules))
    stacked = [name for name in methods if name in PARTS and PARTS[name].merged and PARTS[name].adapted]
    if missing and stacked:
        raise ConfigError(
            f"the users' adapters lie on merged anchors, which change {', '.join(missing)}, but adapt.target_modules "
            f"is {', '.join(config.adapt.target_modules)} (method {stacked[0]}); add the missing ones, or train the "
            "bank without them"
        )


def _refuse_or_load(folder: Path, config: RunConfig, base: BaseModel | None) -> BaseModel:
    """Return the loaded base model, unless the folder holds a run that is not an earlier state of this one."""
    base = base or load_base_model(config.base, device=config.device, dtype=config.dtype)
    _refuse_other_run(folder / CONFIG, config, base)
    return base


def _refuse_other_run(path: Path, config: RunConfig, base: BaseModel) -> None:
    """Refuse a folder whose run cannot be an earlier state of this one."""
    if not path.exists():
        return
    found = read_json(path)
    settings = found.get("config", {}) if isinstance(found, dict) else None
    if not isinstance(settings, dict):
        raise DataError(f"{path} is not the record of a run (no object with settings); choose another folder")
    if settings.get("task_id", config.task_id) != config.task_id:
        raise ConfigError(
            f"{path.parent} holds a run of task {settings['task_id']!r}, not {config.task_id!r}; choose another folder"
        )
    if found.get("base_fingerprint", base.fingerprint) != base.fingerprint:
        raise ConfigError(
            f"{path.parent} holds a run on base model {settings.get('base')!r} "
            f"({str(found['base_fingerprint'])[:12]}), not on {base.name!r} ({base.fingerprint[:12]}); choose another "
            "folder"
        )
    changed = changed_settings(_deciding(settings), _deciding(to_dict(config)))
    if changed and (path.parent / SCORES).exists():
        log.warning("%s holds scores of other settings, which will be replaced: %s", path.parent, ", ".join(changed))


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a row of the table; rows and seeds may be added, and speed may change."""
    return {
        name: value for name, value in settings.items() if name not in ("methods", "seeds", "once", "engine", "device")
    }


def _write_config(folder: Path, config: RunConfig, base: BaseModel) -> None:
    values = {"config": to_dict(config), "base_fingerprint": base.fingerprint, "versions": versions()}
    write_json(folder / CONFIG, values)


@dataclass(frozen=True, slots=True)
class _BankPlace:
    """Where a bank goes, and its trainings until it is there."""

    folder: Path
    work: Path | None


def _resources(
    pool: Sequence[User],
    task: Task,
    config: RunConfig,
    folder: Path,
    place: _BankPlace,
    *,
    base: BaseModel,
    progress: Progress,
) -> Resources:
    """Load the encoders, build the bank or load the one that is there, and put together what methods need."""
    encoders = _encoders(config, base)
    bank = build_bank(
        pool,
        task,
        base,
        place.folder,
        config=config.bank,
        encoders=encoders,
        engine=config.engine,
        min_anchors=config.top_k,
        work=place.work,
        progress=progress,
    )
    return Resources(
        base=base,
        task=task,
        prompts=config.bank.prompts,
        adapt=config.adapt,
        folder=folder / "adapters",
        bank=bank,
        pool=pool,
        encoder=encoders.matching,
        cache=encoders.cache,
        match=replace(config.bank.match, top_k=config.top_k),
        merge=config.merge,
        engine=config.engine,
        progress=progress,
    )


def _encoders(config: RunConfig, base: BaseModel) -> Encoders:
    selection = load_encoder(config.bank.anchors.encoder, device=base.device)
    same = config.bank.match.encoder == config.bank.anchors.encoder
    matching = selection if same else load_encoder(config.bank.match.encoder, device=base.device)
    return Encoders(selection, matching, default_cache())


def _write_matches(folder: Path, matches: Mapping[str, Match], bank: Bank) -> dict[str, float]:
    """Write each user's anchors and how far the two merges are apart; return the mean distance."""
    rows = []
    for match in matches.values():
        adapters: list[Adapter] = [bank.adapter(name) for name in match.anchor_ids]
        distance = merge_distance(adapters, match.weights)
        rows.append({**asdict(match), "cat_vs_linear": asdict(distance)})
    write_json(folder / "matches.json", rows)
    apart = [row["cat_vs_linear"] for row in rows]
    return {name: sum(row[name] for row in apart) / len(apart) for name in ("relative", "cosine")}


def method_record(
    name: str, method: Method, targets: Sequence[User], resources: Resources, folder: Path
) -> MethodRecord:
    """Personalize the targets with one method and answer their queries, or read back what is there already.

    Args:
        name: row of the table and name of the file of answers.
        method: see `baselines.methods`.
        targets: users with queries and gold answers.
        resources: what the method needs.
        folder: run folder.
    """
    people = method(targets, resources)
    answers = _answers(name, people, resources, folder / "predictions")
    if name in PARTS:
        record_adapters(people, resources, name=name)
    count = len(people.users)
    return MethodRecord(
        name=name,
        predictions=finished(people.users, answers.rows),
        updates_per_user=sum(person.updates for person in people.users.values()) / count,
        adapter_bytes_per_user=sum(person.adapter_bytes for person in people.users.values()) / count,
        train_seconds=people.train_seconds,
        shared_train_seconds=people.shared_seconds,
        predict_seconds=answers.seconds,
        cut_prompts=answers.cut_prompts,
        cut_training_prompts=people.cut_rows,
        not_adapted=Counter(person.note for person in people.users.values() if person.note),
    )


@dataclass(frozen=True, slots=True)
class _Answers:
    """One method's answers to all queries."""

    rows: list[Prediction]
    seconds: float | None
    """None where no model was asked."""
    cut_prompts: int


def _answers(name: str, people: PersonalizedUsers, resources: Resources, folder: Path) -> _Answers:
    """Answer, or read the answers back where exactly these were given before, by this method or another."""
    if any(person.answers for person in people.users.values()):
        return replace(_ask(name, people, replace(resources, progress=silent)), seconds=None)
    path = folder / f"{name}.json"
    wanted = predictions_fingerprint(people, resources.base, resources.task)
    for earlier in (path, *sorted(folder.glob("*.json"))):
        saved = _saved(earlier)
        if saved.get("fingerprint") == wanted:
            rows = [Prediction(**row) for row in saved["predictions"]]
            answers = _Answers(rows, float(saved["seconds"]), int(saved["cut_prompts"]))
            break
    else:
        answers = _ask(name, people, resources)
    content = {
        "fingerprint": wanted,
        "seconds": answers.seconds,
        "cut_prompts": answers.cut_prompts,
        "predictions": list(map(asdict, answers.rows)),
    }
    write_json(path, content)
    return answers


def _ask(name: str, people: PersonalizedUsers, resources: Resources) -> _Answers:
    started = time.monotonic()
    with resources.progress(f"answers of {name}") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    require_finite(name, made.rows)
    return _Answers(list(made.rows), time.monotonic() - started, made.cut_prompts)


def _saved(path: Path) -> dict[str, Any]:
    """Read back an earlier call's answers; {} where there are none or the file is damaged (said in the log)."""
    try:
        found = read_json(path) if path.exists() else {}
    except DataError as error:
        log.warning("answering again: %s", error)
        found = {}
    return found if isinstance(found, dict) else {}


def predictions_fingerprint(people: PersonalizedUsers, base: BaseModel, task: Task) -> str:
    """Return a SHA-256 over everything that decides one method's answers."""
    parts = [
        (
            name,
            person.adapter.fingerprint if person.adapter else None,
            to_dict(person.prompts),
            person.retriever.name,
            [(query.query_id, query.text, query.gold) for query in person.user.queries],
            [(item.item_id, dict(item.fields)) for item in person.user.history],
        )
        for name, person in people.users.items()
    ]
    return sha256_json(
        [parts, base.fingerprint, base.tokens.fingerprint, str(base.dtype), task.task_id, task.max_new_tokens]
        + ([task.form] if task.form else [])
    )


def _score(
    records: Sequence[MethodRecord], task: Task, config: RunConfig, targets: Sequence[User], first: _Part
) -> dict[str, Any]:
    people = person_names(targets, rule=rule_for(task.task_id))
    scores = build_scores(
        task.task_id,
        records,
        base=config.base,
        seeds=list(config.seeds) or [config.adapt.seed],
        metrics=task.metrics,
        labels=task.labels,
        people=people,
        judged=JUDGED if JUDGED in {record.name for record in records} else None,
    )
    slices = slice_scores(
        records, _partitions(task, targets, first), metrics=task.metrics, labels=task.labels, people=people
    )
    return {**scores, "slices": slices}


def _partitions(task: Task, targets: Sequence[User], first: _Part) -> dict[str, dict[tuple[str, str], str]]:
    """Cut the queries by what may matter; anchors are those of the first of repeated runs."""
    anchors = set(first.resources.need_bank().anchor_ids)
    return usual_partitions(
        task,
        targets,
        pool=first.resources.pool,
        anchors=[user for user in first.resources.pool if user.user_id in anchors],
        similarities={name: match.similarities[0] for name, match in first.matches.items()},
    )


def _run_card(
    config: RunConfig, parts: Sequence[_Part], targets: Sequence[User], scores: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    resources = parts[0].resources
    distances = {name: sum(part.distances[name] for part in parts) / len(parts) for name in parts[0].distances}
    base, bank = resources.base, resources.need_bank()
    tokens = sum(anchor.tokens for anchor in bank.anchors)
    return {
        "pool users": len(resources.pool),
        "target users": len(targets),
        "history items": {"targets": _history_items(targets), "pool": _history_items(resources.pool)},
        "anchors asked / kept": f"{bank.asked} / {len(bank.anchors)}",
        "anchor tokens trained": tokens,
        "training pairs from": sorted({anchor.source for anchor in bank.anchors}),
        "population control": _population_effort(bank) if "population" in scores["methods"] else "not run",
        "leak check": "no target person in the pool (ids, shared histories, answers seen)",
        "queries answered in the user's own history": len(answers_in_own_history(targets)),
        MERGES_APART: f"relative distance {distances['relative']:.4f}, cosine {distances['cosine']:.4f}",
        "not adapted": not_adapted(scores) or "nobody",
        "prompts cut to fit the model": cut_prompts(scores) or "none",
        "wall seconds of this call": round(seconds, 1),
        "base model": {"name": base.name, "fingerprint": base.fingerprint, "dtype": str(base.dtype)},
        "settings": to_dict(config),
        "versions": versions(),
    }


def _history_items(users: Sequence[User]) -> dict[str, float]:
    """Table 3 of the paper: items per user."""
    counts = [len(user.history) for user in users]
    return {"most": max(counts), "fewest": min(counts), "mean": round(sum(counts) / len(counts), 2)}


def _population_effort(bank: Bank) -> str:
    """Say how the training of the population control compares with what lies beneath the other methods."""
    same = "trained on the anchors' examples, for as many tokens as all anchors together"
    if bank.population is None:
        return same
    return (
        f"{same}; the anchors lie on an adapter trained on the whole pool, whose tokens come on top for every method "
        "that merges anchors and not for this control"
    )


def _write_results(
    folder: Path, scores: dict[str, Any], records: Sequence[MethodRecord], targets: Sequence[User], task: Task
) -> RunResult:
    table = markdown_table(scores)
    write_json(folder / SCORES, scores)
    parts = [table, markdown_comparisons(scores), markdown_slices(scores)]
    write_text(folder / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    write_text(folder / "table.csv", csv_table(scores))
    card = scores["run"]
    cases = build_cases({record.name: record.predictions for record in records}, task=task, people=targets)
    write_report(folder / "report.html", scores=[scores], run_card=card, cases=cases)
    return RunResult(folder, scores, table)
