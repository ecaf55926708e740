"""Try variants of merge-then-adapt on people of the pool; no target user and no target answer is read.

    python benchmarks/search.py --data DIR --task lamp-2 --work RUNS --out docs/results/search/lamp-2.json

Some people of the pool play targets: their last items are their history, as many as targets have; earlier items, which
nobody trains on, and the file's own question are what they are asked. All others are the pool. Every trial is a set of
settings and of methods; its scores are kept with them: NLL of the gold answer, raw, at other people's temperature, and
for labels also with the person's prior, with prior and memory, and with every source of `+pooled` (what is chosen there
is fitted on other people). Finished trials are not run again, and trainings are shared where settings are equal.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mta.base_model import BaseModel
from mta.baselines.label_prior import (
    STRENGTHS,
    TEMPERATURES,
    choose_strength,
    log_prior_ratio,
    pool_shares,
    prior_fits,
    with_prior,
)
from mta.baselines.methods import find_method, fits
from mta.baselines.pooled_method import SOURCES, fitting_sources, known_scores, pooled, weights_for
from mta.config import PromptConfig, to_dict
from mta.data.people import find_people, rule_for
from mta.data.read import read_users
from mta.data.splits import drop_leaks
from mta.evaluation.answers import method_record
from mta.evaluation.run import open_run
from mta.evaluation.run_config import RunConfig
from mta.evaluation.statistics import score_predictions
from mta.files import read_json, sha256_json, write_json
from mta.judges import question_like
from mta.personalize import Resources
from mta.presets import small
from mta.records import Prediction, Query, User
from mta.tasks import get_task
from mta.tasks.task import Task
from on_real_users import begin, parser_of

log = logging.getLogger(__name__)

HISTORY = {"lamp-1": 12, "lamp-2": 9, "lamp-3": 12, "lamp-4": 10, "lamp-5": 20}
"""Items of those who play targets, about as many as targets have."""
QUESTIONS = 4
"""Asked of each of them."""
PLAYERS = 24
PROMPTS = PromptConfig(history_words=40, input_words=90, max_tokens=768)


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings, as changes of the usual ones, and the methods that are asked."""

    methods: tuple[str, ...]
    bank: Mapping[str, Any] | None = None
    """Of the anchors' training."""
    anchors: Mapping[str, Any] | None = None
    """Of their choice."""
    population: Mapping[str, Any] | None = None
    """Of the adapter beneath them, trained on the whole pool; None: there is none."""
    adapt: Mapping[str, Any] | None = None
    merge: Mapping[str, Any] | None = None
    top_k: int = 2


EVERYTHING = {"max_items": 0}
POPULATION = EVERYTHING
POPULATION_EPOCHS = {"lamp-1": 2, "lamp-2": 2, "lamp-3": 2, "lamp-4": 1, "lamp-5": 1}
"""Half an hour of one core, about."""
FIRM = {"lr": 1e-3, **EVERYTHING}
LONG = {"lr": 1e-3, "epochs": 3, **EVERYTHING}
CALM = {"lr": 5e-4, "held_out_share": 0.2, "epochs": 3}
GENTLE = {**CALM, "lr": 2e-4}
MORE = {"bank_size": 24}


def over_population(*methods: str, **changes: Any) -> Trial:
    """Return a trial whose anchors are residuals on an adapter for everybody."""
    return Trial(methods, **{"population": POPULATION, "bank": CALM, "anchors": MORE, **changes})


def over_firm_population(*methods: str, **changes: Any) -> Trial:
    """Return the same over an adapter that has been trained at twice the learning rate."""
    return over_population(*methods, **{"population": FIRM, **changes})


TRIALS: Mapping[str, Trial] = {
    "small": Trial(("base", "classical", "rag-3", "oppu", "population", "population-adapt", "merged-only", "mta")),
    # what lies beneath
    "population": Trial(("merged-only", "mta", "population-adapt"), population=POPULATION),
    "population, calm anchors": over_population("merged-only", "averaged-anchors", "mta"),
    "population, no anchors": over_population("merged-only", "mta", merge={"scale": 0.0}),
    "population of 20 items": over_population("merged-only", "mta", population={"epochs": 2}),
    "population of 1 epoch": over_population("merged-only", "mta", population={"epochs": 1, **EVERYTHING}),
    "population of 4 epochs": over_population("merged-only", "mta", population={"epochs": 4, **EVERYTHING}),
    "population at 1e-3": over_firm_population("merged-only", "mta", "mta-blended"),
    "population of 3 epochs at 1e-3": over_firm_population("merged-only", "mta", population=LONG),
    "population of 3 epochs at 2e-3": over_firm_population("merged-only", "mta", population={**LONG, "lr": 2e-3}),
    "long population, blend": over_firm_population("mta-blended", population=LONG),
    "long population, no anchors": over_firm_population("merged-only", "mta", population=LONG, merge={"scale": 0.0}),
    "long population, no anchors, blend": over_firm_population("mta-blended", population=LONG, merge={"scale": 0.0}),
    "long population, adapt at 5e-4": over_firm_population("mta", "mta-blended", population=LONG, adapt={"lr": 5e-4}),
    "long population, adapt at 2e-4": over_firm_population("mta", "mta-blended", population=LONG, adapt={"lr": 2e-4}),
    "long population, core over anchors of rank 4": over_firm_population(
        "merged-only",
        "mta",
        "mta-blended",
        population=LONG,
        bank={**CALM, "rank": 4, "alpha": 8.0},
        adapt={"form": "core", "lr": 1e-2},
    ),
    "long population, half the merge": over_firm_population("merged-only", population=LONG, merge={"scale": 0.5}),
    "long population, uniform of 6": over_firm_population("merged-only-uniform", population=LONG, top_k=6),
    "long population, evidence of 6": over_firm_population(
        "merged-only-evidence", population=LONG, merge={"weights": "evidence"}, top_k=6
    ),
    "long population, evidence of 6 and nobody": over_firm_population(
        *("merged-only", "averaged-anchors", "mta", "mta-blended"),
        population=LONG,
        merge={"weights": "evidence", "nobody": True},
        top_k=6,
    ),
    "long population, gentle anchors": over_firm_population("merged-only", population=LONG, bank=GENTLE),
    "long population, uniform of 6 gentle anchors": over_firm_population(
        "merged-only-uniform", population=LONG, bank=GENTLE, top_k=6
    ),
    "population of rank 32": over_population(
        "merged-only", "mta", population={**POPULATION, "rank": 32, "alpha": 64.0}
    ),
    "population, anchors of rank 2": over_population("merged-only", "mta", bank={**CALM, "rank": 2, "alpha": 4.0}),
    "population, anchors with dropout": over_population("merged-only", "mta", bank={**CALM, "dropout": 0.2}),
    "population, varied anchors": over_population("merged-only", "mta", anchors={**MORE, "min_label_entropy": 1.0}),
    # weights
    "evidence of 2": over_population("merged-only-evidence", "mta-evidence"),
    "evidence of 6": over_population("merged-only-evidence", "averaged-anchors", "mta-evidence", top_k=6),
    "evidence of 6 and nobody": over_population(
        "merged-only-evidence", "mta-evidence", top_k=6, merge={"weights": "evidence", "nobody": True}
    ),
    "half the merge": over_population("merged-only", "mta", merge={"scale": 0.5}),
    "uniform of 6": over_population("merged-only-uniform", "uniform-weights", top_k=6),
    # adaptation
    "adapt at 2e-4": over_population("mta", "mta-blended", adapt={"lr": 2e-4}),
    "adapt at 5e-4": over_population("mta", "mta-blended", adapt={"lr": 5e-4}),
    "adapt at 2e-3": over_population("mta", adapt={"lr": 2e-3}),
    "adapt 6 epochs": over_population("mta", adapt={"epochs": 6}),
    "adapt 1 epoch": over_population("mta", adapt={"epochs": 1}),
    "adapt rank 2": over_population("mta", adapt={"rank": 2, "alpha": 4.0}),
    "adapt rank 8": over_population("mta", adapt={"rank": 8, "alpha": 16.0}),
    "adapt with dropout": over_population("mta", adapt={"dropout": 0.2}),
    "adapt 6 epochs at 2e-4 with dropout": over_population("mta", adapt={"epochs": 6, "lr": 2e-4, "dropout": 0.2}),
    "adapt with weight decay": over_population("mta", adapt={"weight_decay": 0.1}),
    "adapt by 4": over_population("mta", adapt={"batch_size": 4}),
    "adapt 6 epochs at 3e-4": over_population("mta", adapt={"epochs": 6, "lr": 3e-4}),
    "adapt a core": over_population("mta", adapt={"form": "core", "lr": 1e-2}),
    "adapt coefficients": over_population("mta", adapt={"form": "coefficients", "lr": 5e-2}),
    "adapt core and adapter": over_population("mta", adapt={"form": "core+lora"}),
    # all together
    "gate and average": over_population("mta-gated", "mta-averaged"),
    "blend": over_population("mta-blended"),
    "three items shown": over_population("rag+mta"),
}


def make_players(users: Sequence[User], task: Task, *, count: int) -> tuple[list[User], list[User]]:
    """Return the pool that is left, without who holds an answer of theirs, and people of it who play targets."""
    kept = HISTORY[task.task_id]
    people = find_people(users, rule=rule_for(task.task_id))
    able = [user for user in users if len(user.history) >= kept and any(query.gold for query in user.queries)]
    chosen = random.Random(0).sample(sorted(able, key=lambda user: user.user_id), min(count, len(able)))
    names = {user.user_id for user in chosen}
    taken = {name for person in people if names & set(person) for name in person}
    players = [_player(user, task, kept) for user in chosen]
    left = [user for user in users if user.user_id not in taken]
    return drop_leaks(left, players, rule=rule_for(task.task_id))[0], players


def _player(user: User, task: Task, kept: int) -> User:
    earlier = {item.item_id for item in user.history[:-kept]}
    real = next(query for query in user.queries if query.gold)
    asked = [real]
    for pair in task.pairs(user, 0).pairs:
        text = question_like(real, pair.fields, task)
        if text and pair.item_id in earlier and len(asked) < QUESTIONS:
            asked.append(Query(f"{real.query_id} {pair.item_id}", text, pair.answer))
    return replace(user, history=user.history[-kept:], queries=tuple(asked))


def config_of(trial: Trial, options: argparse.Namespace) -> RunConfig:
    """Return a trial's settings."""
    usual = small(options.task)
    bank = replace(
        usual.bank,
        prompts=PROMPTS,
        anchors=replace(usual.bank.anchors, **{"bank_size": 12, **(trial.anchors or {})}),
        train=replace(usual.bank.train, **{"max_items": options.max_items, **(trial.bank or {})}),
        population_beneath=trial.population is not None,
        population_train=replace(
            usual.bank.population_train,
            **{"max_items": options.max_items, "epochs": POPULATION_EPOCHS[options.task], **(trial.population or {})},
        ),
    )
    if options.base == "tiny-random":
        bank = replace(
            bank,
            anchors=replace(bank.anchors, encoder="tiny-random"),
            match=replace(bank.match, encoder="tiny-random"),
        )
    return RunConfig(
        task_id=options.task,
        base=options.base,
        dtype=options.dtype,
        bank=bank,
        top_k=trial.top_k,
        merge=replace(usual.merge, **(trial.merge or {})),
        adapt=replace(usual.adapt, **(trial.adapt or {})),
        methods=tuple(name for name in trial.methods if fits(name, get_task(options.task))),
    )


def run_trial(
    pool: Sequence[User], players: Sequence[User], config: RunConfig, work: Path, base: BaseModel
) -> dict[str, Any]:
    """Do what is not done yet, and score every method."""
    started = time.monotonic()
    folder = work / sha256_json(to_dict(config))[:12]
    trainings = _trainings(work, config)
    resources = open_run(pool, players, config, folder, base=base, work=trainings)
    found = {}
    for name in config.methods:
        record = method_record(name, find_method(name), players, resources, folder)
        found[name] = scores_of(record.predictions, players, resources)
        log.warning("%s: %s", name, found[name])
    return {"seconds": round(time.monotonic() - started), "people": len(players), "scores": found}


def _trainings(work: Path, config: RunConfig) -> Path:
    """Return the folder of a bank's trainings; the population adapter is copied from wherever it is the same."""
    bank = config.bank
    population = to_dict(bank.population_train) if bank.population_beneath else None
    beneath = sha256_json([population, to_dict(bank.prompts), config.dtype])
    place = work / f"trained-{beneath[:8]}-{sha256_json(to_dict(bank.train))[:8]}"
    for earlier in sorted(work.glob(f"trained-{beneath[:8]}-*/population")):
        if not (place / "population").exists():
            shutil.copytree(earlier, place / "population")
    return place


def scores_of(rows: Sequence[Prediction], players: Sequence[User], resources: Resources) -> dict[str, float]:
    """Return the official metrics, NLLs, and for labels what the prior adds."""
    task = resources.task
    found = dict(score_predictions(rows, metrics=task.metrics, labels=task.labels).metrics)
    if prior_fits(task) and all(row.gold in row.label_scores for row in rows):
        corrected = with_others_prior(rows, players, resources)
        scores = score_predictions(corrected, metrics=task.metrics, labels=task.labels).metrics
        found |= {"nll_with_prior": scores["nll"], "label_accuracy_with_prior": scores["label_accuracy"]}
    if all(row.label_scores for row in rows):
        for ending, asked in (("memory", ("prior", "memory")), ("all", tuple(SOURCES))):
            if names := fitting_sources(task, asked):
                pooled_rows = pooled_by_others(rows, players, resources, names)
                scores = score_predictions(pooled_rows, metrics=task.metrics, labels=task.labels).metrics
                found |= {f"{name}_with_{ending}": scores[name] for name in ("nll", "label_accuracy")}
    return {name: round(value, 4) for name, value in found.items()}


def with_others_prior(rows: Sequence[Prediction], players: Sequence[User], resources: Resources) -> list[Prediction]:
    """Correct each person's answers with the temperature and strength that fit the other people best."""
    shares = pool_shares(resources.task, resources.pool)
    ratios = {user.user_id: log_prior_ratio(user, shares, resources.task) for user in players}
    corrected = []
    for user in players:
        others = [row for row in rows if row.user_id != user.user_id]
        choice = choose_strength(others, ratios, STRENGTHS, TEMPERATURES)
        corrected += [
            with_prior(row, ratios[user.user_id], choice.strength, choice.temperature)
            for row in rows
            if row.user_id == user.user_id
        ]
    return corrected


def pooled_by_others(
    rows: Sequence[Prediction], players: Sequence[User], resources: Resources, names: Sequence[str]
) -> list[Prediction]:
    """Pool each person's answers with those of sources, by the weights that fit the other people best."""
    known = known_scores(players, resources, names, pool=resources.pool)
    found = []
    for user in players:
        weights = weights_for([row for row in rows if row.user_id != user.user_id], known)
        found += [pooled(row, known=known, weights=weights) for row in rows if row.user_id == user.user_id]
    return found


def main() -> None:
    """Run the trials that have no result yet."""
    parser = parser_of(__doc__)
    parser.add_argument("--max-items", type=int, default=20, help="items of an anchor that are trained on")
    parser.add_argument("--players", type=int, default=PLAYERS)
    parser.add_argument("--trial", action="append", choices=list(TRIALS), help="only these; repeat it")
    options = parser.parse_args()
    base = begin(options)
    task = get_task(options.task)
    users = read_users(options.data / task.lamp_name / "pool_questions.json", task=task).users
    pool, players = make_players(users, task, count=options.players)
    for name in options.trial or TRIALS:
        config = config_of(TRIALS[name], options)
        results: dict[str, Any] = read_json(options.out) if options.out.exists() else {}
        decides = {**to_dict(config), "players": [user.user_id for user in players], "questions": QUESTIONS}
        if results.get(name, {}).get("decides") == (seal := sha256_json(decides)):
            continue
        found = run_trial(pool, players, config, options.work / task.task_id, base)
        results = read_json(options.out) if options.out.exists() else {}  # another process may have written
        write_json(options.out, {**results, name: {"decides": seal, "settings": to_dict(config), **found}})


if __name__ == "__main__":
    main()
