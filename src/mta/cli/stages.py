"""`mta match`, `merge`, `adapt` and `generate`: stages 2 and 3 one by one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note, progress_bars, show_json, show_table
from mta.cli.settings import ADAPT_ALONE, ENGINE, MERGE, TOP_K, Given, Plan
from mta.data.checks import first_few
from mta.errors import ConfigError

if TYPE_CHECKING:
    from mta.bank import Bank
    from mta.base_model import BaseModel
    from mta.merging import Match
    from mta.personalize import Resources
    from mta.progress import Progress
    from mta.records import User

FILES = "--bank bank --targets data/target_questions.json"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "match", settings=(TOP_K,), example=f"mta match {FILES} --top-k 2")(match)
    command(
        app, "merge", settings=(TOP_K, *MERGE), example=f"mta merge {FILES} --user target-000 --out merged/target-000"
    )(merge)
    command(
        app,
        "adapt",
        settings=ADAPT_ALONE,
        example=f"mta adapt {FILES} --adapt-epochs 1 --adapt-max-items 4 --out adapters",
    )(adapt)
    command(
        app,
        "generate",
        settings=(TOP_K, *MERGE, *ENGINE),
        example=f"mta generate {FILES} --adapters adapters --out predictions.jsonl",
    )(generate)


def match(
    bank: options.BankFolder,
    targets: options.Targets,
    given: Given,
    user: options.User = None,
    out: options.OutFile = None,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Find each user's nearest anchors and their weights; needs no base model."""
    from mta.bank import load_bank
    from mta.files import write_json

    loaded = load_bank(bank)
    users = _users(targets, loaded, user, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    with progress_bars() as progress:
        found = _match(users, loaded, _plan(loaded, given), device, progress)
    rows = [asdict(one) for one in found.values()]
    if out:
        write_json(out, rows)
    if as_json:
        show_json(rows)
        return
    cells = [
        (one.user_id, place + 1, anchor, f"{one.similarities[place]:.4f}", f"{one.weights[place]:.4f}")
        for one in found.values()
        for place, anchor in enumerate(one.anchor_ids)
    ]
    show_table(("user", "rank", "anchor", "similarity", "weight"), cells)


def merge(
    bank: options.BankFolder,
    targets: options.Targets,
    user: options.OneUser,
    out: options.Out,
    given: Given,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Write one user's merged anchors as a PEFT folder, and say how far the two ways of merging are apart."""
    from mta.bank import load_bank
    from mta.config import BY_HISTORY
    from mta.errors import ConfigError
    from mta.lora.peft_format import write_peft
    from mta.merging import merge_distance, reweigh
    from mta.personalize import merged_recipe

    loaded = load_bank(bank)
    plan = _plan(loaded, given)
    if plan.merge.weights in BY_HISTORY:
        raise ConfigError(
            f"weights {plan.merge.weights!r} ask the base model about the user's history, and `mta merge` loads none; "
            "take other weights, or use `mta adapt`"
        )
    users = _users(targets, loaded, user, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    with progress_bars() as progress:
        found = reweigh(_match(users, loaded, plan, device, progress)[user], plan.merge)
    adapter = merged_recipe(found, loaded, plan.merge).make()
    write_peft(adapter, out, base_model=loaded.base_name)
    apart = merge_distance([loaded.adapter(name) for name in found.anchor_ids], found.weights)
    if as_json:
        show_json({"match": asdict(found), "rank": adapter.rank, "cat_vs_linear": asdict(apart)})
        return
    weights = ", ".join(f"{name} x {weight:.3f}" for name, weight in zip(found.anchor_ids, found.weights, strict=True))
    typer.echo(f"{user} = {weights}; rank {adapter.rank}, {adapter.parameters:,} values, in {out}")
    typer.echo(f"cat against linear: relative distance {apart.relative:.4f}, cosine {apart.cosine:.4f}")


def adapt(
    bank: options.BankFolder,
    targets: options.Targets,
    out: options.Out,
    given: Given,
    base: options.BankBase = None,
    user: options.User = None,
    adapt_only: Annotated[
        bool, typer.Option("--adapt-only", help="Adapt the bare base model, without merged anchors beneath.")
    ] = False,
    preset: options.Preset = None,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Train a tiny adapter for every user of a file; goes on where a killed call stopped."""
    from mta.bank import load_bank
    from mta.cli.loading import load_base
    from mta.evaluation.restore import record_adapters
    from mta.personalize import personalize_users

    loaded = load_bank(bank)
    users = _users(targets, loaded, user, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    name = "adapt-only" if adapt_only else "mta"
    with progress_bars() as progress:
        model = load_base(base or loaded.base_name, device=device, dtype=dtype, threads=threads, progress=progress)
        loaded.check_base(model)
        resources = _resources(loaded, model, out, _adapt_plan(loaded, model, preset, given), progress)
        people = personalize_users(users, resources, merged=not adapt_only, name=name)
        record_adapters(people, resources, name=name)
    if people.cut_rows:
        note(f"{people.cut_rows} training prompts were cut to fit the model, their history first")
    rows = [
        {"user_id": key, "updates": one.updates, "bytes": one.adapter_bytes, "note": one.note}
        for key, one in people.users.items()
    ]
    if as_json:
        show_json(rows)
        return
    show_table(("user", "updates", "bytes", "note"), [tuple(row.values()) for row in rows], title=f"{out / name}")


def generate(
    bank: options.BankFolder,
    targets: options.Targets,
    out: Annotated[Path, typer.Option("--out", help="File for the answers, one JSON object a line.")],
    given: Given,
    adapters: Annotated[
        Path | None, typer.Option("--adapters", help="Folder from `mta adapt --out`, or RUN/adapters.")
    ] = None,
    base: options.BankBase = None,
    method: Annotated[
        Literal["mta", "merged-only", "adapt-only", "base"], typer.Option("--method", help="How users are served.")
    ] = "mta",
    user: options.User = None,
    golds: options.Golds = None,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
) -> None:
    """Answer every question of every user with adapters made before; trains nothing."""
    from mta.bank import load_bank
    from mta.cli.loading import load_base
    from mta.evaluation.predict import predict
    from mta.evaluation.predictions_file import write_predictions
    from mta.evaluation.restore import STORED, restore_users

    if method in STORED and adapters is None:
        raise ConfigError(f"method {method} needs each user's own adapter; name their folder with --adapters")
    _refuse_useless(given, method)
    loaded = load_bank(bank)
    users = _users(targets, loaded, user, golds=golds, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    plan = _plan(loaded, given)
    with progress_bars() as progress:
        model = load_base(base or loaded.base_name, device=device, dtype=dtype, threads=threads, progress=progress)
        loaded.check_base(model)
        people = restore_users(users, _resources(loaded, model, adapters or out.parent, plan, progress), method=method)
        with progress("answers") as step:
            made = predict(list(people.users.values()), base=model, engine=plan.engine, step=step)
    write_predictions(out, {method: made.rows})
    asked = len({row.user_id for row in made.rows})
    typer.echo(f"answers: {len(made.rows)}, to users: {asked}, in {out}")
    if made.cut_prompts:
        note(f"{made.cut_prompts} prompts were cut to fit the model, their history first")


def _refuse_useless(given: Given, method: str) -> None:
    """Refuse options of matching and merging where nothing is matched or merged anew."""
    named = [setting.flag for setting in (TOP_K, *MERGE) if given.values.get(setting) is not None]
    if named and method != "merged-only":
        why = "its adapters were trained over anchors that are on record" if method == "mta" else "it merges no anchors"
        raise ConfigError(
            f"{', '.join(named)} has no use with method {method}: {why}; leave it out, or choose --method merged-only"
        )


def _users(
    path: Path,
    bank: Bank,
    user_id: str | None,
    *,
    golds: Path | None = None,
    skip_malformed: bool,
    queries_per_user: int,
) -> list[User]:
    from mta.cli.loading import load_users, pick_user

    users = load_users(path, bank.task, golds=golds, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    chosen = _with_history(users, path) if user_id is None else [pick_user(users, user_id)]
    bank.check_targets(chosen)
    return chosen


def _with_history(users: list[User], path: Path) -> list[User]:
    """Leave out, and name, users there is nothing to personalize from, unless they are all."""
    found = [user for user in users if user.history]
    without = [user.user_id for user in users if not user.history]
    if not without or not found:
        return users
    note(f"{path}: {len(without)} users without history left out; the base model serves them: {first_few(without)}")
    return found


def _plan(bank: Bank, given: Given) -> Plan:
    """The bank's own settings, with what was given; a bank smaller than its top_k merges all it has."""
    from mta.config import MergeConfig, TrainConfig

    usual = replace(bank.config.match, top_k=min(bank.config.match.top_k, len(bank.anchor_ids)))
    return given.apply(Plan(bank=bank.config, match=usual, merge=MergeConfig(), adapt=TrainConfig()))


def _adapt_plan(bank: Bank, base: BaseModel, preset: str | None, given: Given) -> Plan:
    from mta.personalize import parameter_count
    from mta.presets import default_preset, find_preset

    chosen = find_preset(preset or default_preset(parameter_count(base)), bank.task.task_id)
    plan = replace(_plan(bank, Given({})), adapt=chosen.adapt, merge=chosen.merge)
    return given.apply(plan)


def _match(users: list[User], bank: Bank, plan: Plan, device: str, progress: Progress) -> dict[str, Match]:
    from mta.encoders import load_encoder
    from mta.personalize import match_to_bank
    from mta.runtime import choose_device
    from mta.vector_cache import default_cache

    encoder = load_encoder(bank.config.match.encoder, device=choose_device(device))
    cache = default_cache()
    return match_to_bank(users, bank, encoder=encoder, match=plan.match, cache=cache, progress=progress)


def _resources(bank: Bank, base: BaseModel, folder: Path, plan: Plan, progress: Progress) -> Resources:
    from mta.personalize import Resources
    from mta.vector_cache import default_cache

    return Resources(
        base=base,
        task=bank.task,
        prompts=bank.config.prompts,
        adapt=plan.adapt,
        folder=folder,
        bank=bank,
        cache=default_cache(),
        match=plan.match,
        merge=plan.merge,
        engine=plan.engine,
        progress=progress,
    )
