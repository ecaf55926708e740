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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mta.bank import Bank
from mta.bank_building import Encoders, build_bank
from mta.base_model import BaseModel, load_base_model
from mta.baselines.methods import PARTS, depends_on_seed, find_method, methods_for
from mta.baselines.roles import SWAPS, stem_of
from mta.config import changed_settings, to_dict
from mta.data.people import person_names, rule_for
from mta.data.splits import check_disjoint
from mta.encoders import load_encoder
from mta.errors import ConfigError, DataError
from mta.evaluation.answers import method_record
from mta.evaluation.cases import build_cases
from mta.evaluation.folders import CONFIG, SCORES, deciding, read_earlier, refuse_other_results
from mta.evaluation.predictions_file import write_predictions
from mta.evaluation.released_scores import released_scores
from mta.evaluation.released_table import markdown_released
from mta.evaluation.report import write_report
from mta.evaluation.run_card import run_card
from mta.evaluation.run_config import JUDGED, RunConfig
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.slices import slice_scores, usual_partitions
from mta.evaluation.table import MERGES_APART, csv_table, markdown_comparisons, markdown_slices, markdown_table
from mta.files import folder_if_used, read_json, seal_broken, sealed, write_json, write_text
from mta.folder_lock import alone_in_folder
from mta.lora.adapter import Adapter
from mta.merging import Match, check_weights, merge_distance
from mta.personalize import Resources, match_users
from mta.progress import Progress, silent
from mta.records import User
from mta.runtime import versions
from mta.tasks.released import RELEASED
from mta.tasks.task import Task
from mta.vector_cache import default_cache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves behind."""

    folder: Path
    scores: dict[str, Any]
    table: str
    """Markdown."""


@alone_in_folder
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
        StorageError: the folder cannot be written, or another call is at work there.
    """
    started = time.monotonic()
    task = config.task
    methods = _possible(methods_for(task, config.methods), task, targets)
    repeated = [name for name in methods if depends_on_seed(name) and name not in methods_for(task, config.once)]
    parts: list[_Part] = []
    if config.seeds:
        base = _refuse_or_load(folder, config, base)
    repeats = {folder / f"seed-{seed}": config.seeded(seed) for seed in config.seeds} or {folder: config}
    for place, one in repeats.items():
        parts.append(_answer_all(repeated if parts else methods, pool, targets, one, place, base, progress))
    if config.seeds:
        _write_config(folder, config, parts[0].resources.base)
    records = [_joined(name, parts, config.seeds) for name in methods]
    scores = _score(records, task, config, targets, parts[0])
    if task.form == RELEASED:
        scores["released"] = {record.name: released_scores(task, record.predictions) for record in records}
    scores["run"] = {
        **(notes or {}),
        **run_card(config, [part.resources for part in parts], targets, scores, time.monotonic() - started),
        MERGES_APART: _merges_apart(parts),
    }
    _say_what_is_left_out(folder, methods)
    return _write_results(folder, scores, list(parts[0].records.values()), targets, task)


def _say_what_is_left_out(folder: Path, methods: Sequence[str]) -> None:
    earlier = read_earlier(folder / SCORES).get("methods")
    if isinstance(earlier, dict) and (missing := [name for name in earlier if name not in methods]):
        log.warning(
            "the table in %s no longer has %s; their answers stay, and --method brings a row back",
            folder,
            ", ".join(missing),
        )


def _possible(methods: Sequence[str], task: Task, targets: Sequence[User]) -> list[str]:
    """Leave out the rows that need another person than the one there is, and say so."""
    alone = len(set(person_names(targets, rule=rule_for(task.task_id)).values())) == 1
    left_out = [name for name in methods if alone and stem_of(name) in SWAPS]
    if left_out:
        log.warning("left out %s: the targets are one person, and it takes another one's adapter", left_out[0])
    if not (kept := [name for name in methods if name not in left_out]):
        raise ConfigError("no method is left to run; name one with --method, or give more target users")
    return kept


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
        chosen_on_pool=[chosen for record in records for chosen in record.chosen_on_pool],
        chosen_by_users=[chosen for record in records for chosen in record.chosen_by_users],
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
    """Refuse before the bank is trained what cannot be matched, merged or adapted after."""
    largest = config.bank.anchors.bank_size
    if not 1 <= config.top_k <= largest:
        raise ConfigError(
            f"top_k is {config.top_k} but the bank will have at most {largest} anchors; choose 1 to {largest}, or "
            "build a larger bank"
        )
    check_weights(config.merge, top_k=config.top_k)
    missing = sorted(set(config.bank.train.target_modules) - set(config.adapt.target_modules))
    stacked = [name for name in methods if _stacks(stem_of(name))]
    if missing and stacked:
        raise ConfigError(
            f"the users' adapters lie on merged anchors, which change {', '.join(missing)}, but adapt.target_modules "
            f"is {', '.join(config.adapt.target_modules)} (method {stacked[0]}); add the missing ones, or train the "
            "bank without them"
        )


def _stacks(name: str) -> bool:
    """Tell whether a method puts users' own parts on merged anchors."""
    parts = PARTS.get(name)
    others = (*SWAPS, "rag+mta", "mta-gated", "mta-averaged", "mta-blended")
    return parts.merged and parts.adapted if parts else name in others


def _refuse_or_load(folder: Path, config: RunConfig, base: BaseModel | None) -> BaseModel:
    """Return the loaded base model, unless the folder holds a run that is not an earlier state of this one."""
    base = base or load_base_model(config.base, device=config.device, dtype=config.dtype)
    _refuse_other_run(folder / CONFIG, config, base)
    return base


def _refuse_other_run(path: Path, config: RunConfig, base: BaseModel) -> None:
    """Refuse a folder whose results cannot be an earlier state of this run."""
    refuse_other_results(path.parent, "run")
    if not path.exists():
        return
    found = read_json(path)
    if seal_broken(found):
        raise DataError(
            f"{path} is damaged or was edited: its checksum differs, so it cannot say whose folder this is; choose "
            "another folder, or remove the file to go on here (whatever was made under other settings is made again)"
        )
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
    if bool(settings.get("seeds")) != bool(config.seeds) and (path.parent / SCORES).exists():
        held = "repeated under several seeds" if settings.get("seeds") else "without repeats"
        raise ConfigError(
            f"{path.parent} holds a run {held}, whose answers would stay beside the new scores; choose another folder"
        )
    changed = changed_settings(deciding(settings), deciding(to_dict(config)))
    if changed and (path.parent / SCORES).exists():
        log.warning("%s holds scores of other settings, which will be replaced: %s", path.parent, ", ".join(changed))


def _write_config(folder: Path, config: RunConfig, base: BaseModel) -> None:
    values = {"config": to_dict(config), "base_fingerprint": base.fingerprint, "versions": versions()}
    write_json(folder / CONFIG, sealed(values))


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


def _score(
    records: Sequence[MethodRecord], task: Task, config: RunConfig, targets: Sequence[User], first: _Part
) -> dict[str, Any]:
    people = person_names(targets, rule=rule_for(task.task_id))
    names = [record.name for record in records]
    scores = build_scores(
        task.task_id,
        records,
        base=config.base,
        seeds=list(config.seeds) or [config.adapt.seed],
        metrics=task.metrics,
        labels=task.labels,
        people=people,
        judged=next((name for name in (config.judged, JUDGED) if name in names), None),
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


def _merges_apart(parts: Sequence[_Part]) -> str:
    """Say how far the two merges are apart, mean over users and seeds."""
    relative, cosine = (fmean(part.distances[name] for part in parts) for name in ("relative", "cosine"))
    return f"relative distance {relative:.4f}, cosine {cosine:.4f}"


def _write_results(
    folder: Path, scores: dict[str, Any], records: Sequence[MethodRecord], targets: Sequence[User], task: Task
) -> RunResult:
    table = markdown_table(scores)
    write_json(folder / SCORES, scores)
    parts = [table, markdown_released(scores), markdown_comparisons(scores), markdown_slices(scores)]
    write_text(folder / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    write_text(folder / "table.csv", csv_table(scores))
    card = scores["run"]
    cases = build_cases({record.name: record.predictions for record in records}, task=task, people=targets)
    write_report(folder / "report.html", scores=[scores], run_card=card, cases=cases)
    return RunResult(folder, scores, table)
