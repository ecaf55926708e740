"""`mta anchors` and `mta bank`: stage 1."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note, progress_bars, show_json, show_table
from mta.cli.settings import ANCHORS, BANK, ENGINE, Given, Plan, plan_for

if TYPE_CHECKING:
    from mta.bank import Bank

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the bank.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(
        app,
        "anchors",
        settings=ANCHORS,
        example="mta anchors --pool data/pool_questions.json --task lamp-2 --bank-size 3 --encoder tiny-random",
    )(anchors)
    bank = typer.Typer(no_args_is_help=True, help="Build, show and look after a bank of meta-LoRAs.")
    app.add_typer(bank, name="bank")
    command(
        bank,
        "build",
        settings=(*BANK, *ENGINE),
        example="mta bank build --pool data/pool_questions.json --task lamp-2 --base tiny-random --bank-size 3 "
        "--bank-epochs 1 --bank-min-updates 2 --max-items 4 --out bank",
    )(build)
    command(bank, "show", example="mta bank show bank")(show)
    command(bank, "retire", example="mta bank retire bank --anchor pool-005")(retire)


def anchors(
    pool: options.Pool,
    task: options.Task,
    given: Given,
    preset: options.Preset = None,
    out: options.OutFile = None,
    skip_malformed: options.SkipMalformed = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Choose anchor users from a pool, without training anything.

    The settings are the paper's; `mta bank build` takes those of the preset "small" for small base models.
    """
    from mta.anchors import select_anchors
    from mta.cli.loading import load_users
    from mta.config import MergeConfig, TrainConfig
    from mta.encoders import embed_users, load_encoder
    from mta.files import write_json
    from mta.presets import find_preset
    from mta.runtime import choose_device
    from mta.tasks import get_task
    from mta.tasks.labels import label_entropies
    from mta.vector_cache import default_cache

    found = get_task(task)
    bank = find_preset(preset or "paper", found.task_id).bank
    config = given.apply(Plan(bank=bank, match=bank.match, merge=MergeConfig(), adapt=TrainConfig())).bank.anchors
    users = [user for user in load_users(pool, found, skip_malformed=skip_malformed) if user.history]
    encoder = load_encoder(config.encoder, device=choose_device(device))
    with progress_bars() as progress, progress("user vectors") as step:
        cache = default_cache()
        vectors = embed_users(encoder, users, found.item_text, cache=cache, on_progress=step)
    chosen = select_anchors(
        vectors,
        [len(user.history) for user in users],
        user_ids=[user.user_id for user in users],
        config=config,
        label_entropies=label_entropies(found, users) if config.min_label_entropy else None,
    )
    result = {"asked": chosen.asked, "kept": chosen.kept, **asdict(chosen)}
    if out:
        write_json(out, result)
    if as_json:
        show_json(result)
        return
    rows = [(anchor.user_id, anchor.cluster, anchor.history_size) for anchor in chosen.anchors]
    show_table(("anchor", "cluster", "history items"), rows, title=f"{chosen.kept} anchors of {chosen.asked} asked for")
    for cluster in chosen.dropped:
        note(f"cluster {cluster.cluster} gives no anchor: {cluster.reason}")


def build(
    pool: options.Pool,
    task: options.Task,
    out: options.Out,
    given: Given,
    base: options.Base = "llama-3-8b-instruct",
    preset: options.Preset = None,
    skip_malformed: options.SkipMalformed = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing; say what would be trained and how much memory it would take."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Choose anchors from a pool and train one meta-LoRA for each; goes on where a killed call stopped."""
    if dry_run:
        _show_plan(
            pool, task, given, base, preset, skip_malformed=skip_malformed, device=device, dtype=dtype, as_json=as_json
        )
        return
    from mta.bank_building import Encoders, build_bank
    from mta.cli.loading import load_base, load_users
    from mta.encoders import load_encoder
    from mta.tasks import get_task
    from mta.vector_cache import default_cache

    found = get_task(task)
    users = load_users(pool, found, skip_malformed=skip_malformed)
    with progress_bars() as progress:
        model = load_base(base, device=device, dtype=dtype, threads=threads, progress=progress)
        plan = plan_for(model, task_id=found.task_id, preset=preset, given=given, merges=False)
        selection, matching = (
            load_encoder(name, device=model.device) for name in (plan.bank.anchors.encoder, plan.bank.match.encoder)
        )
        made = build_bank(
            users,
            found,
            model,
            out,
            config=plan.bank,
            encoders=Encoders(selection, matching, default_cache()),
            engine=plan.engine,
            progress=progress,
        )
    _show(made, as_json=as_json)


def _show_plan(
    pool: Path,
    task: str,
    given: Given,
    base: str,
    preset: str | None,
    *,
    skip_malformed: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Show what `build` would do; the base model's weights are not loaded."""
    from mta.bank_costs import bank_costs
    from mta.bank_plan import plan_bank
    from mta.base_model import load_base_shape
    from mta.cli.loading import load_users
    from mta.encoders import load_encoder
    from mta.tasks import get_task
    from mta.vector_cache import default_cache

    found = get_task(task)
    users = load_users(pool, found, skip_malformed=skip_malformed)
    with progress_bars() as progress:
        shape = load_base_shape(base, device=device, dtype=dtype)
        plan = plan_for(shape, task_id=found.task_id, preset=preset, given=given, merges=False)
        encoder = load_encoder(plan.bank.anchors.encoder, device=shape.device)
        planned = plan_bank(
            users, found, shape.tokens, config=plan.bank, encoder=encoder, cache=default_cache(), progress=progress
        )
        costs = bank_costs(shape, planned, engine=plan.engine)
    if as_json:
        show_json(asdict(costs))
        return
    show_table(("what", "how much"), costs.rows(), title=f"a bank for {found.task_id} on {base}, not trained")


def show(folder: Folder, as_json: options.Json = False) -> None:
    """Show what is in a bank; its files are checked on the way."""
    from mta.bank import load_bank

    _show(load_bank(folder), as_json=as_json)


def retire(folder: Folder, anchor: Annotated[str, typer.Option("--anchor", help="User id of the anchor.")]) -> None:
    """Take an anchor out of matching; its files stay."""
    from mta.bank import load_bank, retire_anchor

    left = retire_anchor(load_bank(folder), anchor)
    typer.echo(f"{anchor} is retired; {len(left.anchor_ids)} anchors are in use")


def _show(bank: Bank, *, as_json: bool) -> None:
    if as_json:
        from mta.bank import MANIFEST
        from mta.files import read_json

        show_json(read_json(bank.folder / MANIFEST))
        return
    head = ("anchor", "cluster", "items", "examples", "updates", "tokens", "last loss", "in use")
    rows = [
        (
            a.user_id,
            a.cluster,
            a.history_size,
            a.examples,
            a.updates,
            a.tokens,
            f"{a.last_loss:.3f}",
            _yes(not a.retired),
        )
        for a in bank.anchors
    ]
    what = (
        f"{bank.folder}: {bank.task.task_id} on {bank.base_name}, {len(bank.anchors)} anchors of {bank.asked} asked for"
    )
    show_table(head, rows, title=what)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
