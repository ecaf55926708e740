"""`mta serve`, `mta keys` and `mta users`: many people from one process."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note, progress_bars, show_json, show_table
from mta.cli.settings import ADAPT, MERGE, SERVE, TOP_K, Given, ServePlan
from mta.errors import ConfigError

if TYPE_CHECKING:
    from mta.bank import Bank
    from mta.base_model import BaseModel
    from mta.serving.database import Database
    from mta.serving.server import Server

STORE = "sqlite:///mta.db"
Store = Annotated[
    str, typer.Option("--store", help="Where people are kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.")
]
TenantName = Annotated[str, typer.Option("--tenant", help="Whose.")]
Name = Annotated[str, typer.Argument(metavar="USER", help="Name of the person.")]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[USER]...", help="Names of people; without any, everybody.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(
        app,
        "serve",
        settings=(*SERVE, TOP_K, *MERGE, *ADAPT),
        example="mta serve --base tiny-random --store sqlite:///u.db",
    )(serve)
    keys = typer.Typer(no_args_is_help=True, help="API keys of a server's tenants.")
    app.add_typer(keys, name="keys")
    command(keys, "add", example="mta keys add --tenant acme --label shop")(add)
    command(keys, "list", example="mta keys list")(listed)
    command(keys, "revoke", example="mta keys revoke 1")(revoke)
    users = typer.Typer(no_args_is_help=True, help="People in a server's store.")
    app.add_typer(users, name="users")
    command(users, "list", example="mta users list --tenant acme")(people)
    command(users, "audit", example="mta users audit ada")(audit)
    command(users, "delete", example="mta users delete ada")(delete)
    command(
        users,
        "export",
        settings=(TOP_K, *MERGE),
        example="mta users export ada --bank runs/demo/bank --out loras --rank-budget 16",
    )(export)


def serve(
    given: Given,
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Folder of a bank; without one nothing is merged.")
    ] = None,
    base: options.BankBase = None,
    store: Store = STORE,
    task: Annotated[
        str | None, typer.Option("--task", help=f"{options.TASK_HELP} By default the bank's; without a bank own-by-id.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at.")] = 8000,
    need_keys: Annotated[bool, typer.Option("--need-keys", help="Ask for keys on loopback too.")] = False,
    playground: Annotated[bool, typer.Option("--playground/--no-playground", help="A page at / to try it.")] = True,
    preset: options.Preset = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
) -> None:
    """Answer people over HTTP, with an OpenAI-compatible API, and adapt them in the background."""
    from mta.bank import load_bank
    from mta.cli.loading import load_base
    from mta.serving.extra import need_serve_extra

    need_serve_extra(playground=playground)
    import uvicorn

    from mta.serving.app import LOOPBACK, make_app

    loaded = load_bank(bank) if bank else None
    if loaded is None and base is None:
        raise ConfigError("name a bank with --bank, or at least a base model with --base (mta models lists them)")
    open_to_all = _is_loopback(host) and not need_keys
    with progress_bars() as progress:
        name = base or (loaded.base_name if loaded else "")
        model = load_base(name, device=device, dtype=dtype, threads=threads, progress=progress)
    server = _server(model, loaded, store, task=task, preset=preset, given=given, open_to_all=open_to_all)
    own_names = (*LOOPBACK, host) if open_to_all and ":" not in host else ()
    app = make_app(server, playground=playground, hosts=own_names)
    signal.signal(signal.SIGTERM, _end)  # uvicorn sends it to the process again when it has ended its own work
    with server:
        typer.echo(f"serving {server.people.base.name} for {server.people.task.title} at http://{host}:{port}")
        note(
            "requests need no key, since only this machine can reach the server"
            if open_to_all
            else "requests need keys"
        )
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=30)


def _end(*_: object) -> None:
    raise SystemExit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server(
    model: BaseModel,
    bank: Bank | None,
    store: str,
    *,
    task: str | None,
    preset: str | None,
    given: Given,
    open_to_all: bool,
) -> Server:
    from mta.config import MatchConfig, PromptConfig
    from mta.encoders import load_encoder
    from mta.personalize import parameter_count
    from mta.presets import default_preset, find_preset
    from mta.serving.composition import Composition
    from mta.serving.database import open_database
    from mta.serving.people import People
    from mta.serving.server import Server
    from mta.serving.user_store import UserStore
    from mta.tasks import get_task

    if bank and task and task != bank.task.task_id:
        raise ConfigError(f"--task is {task!r}, and the bank is of {bank.task.task_id!r}; leave --task out")
    asked = bank.task if bank else get_task(task or "own-by-id")
    found = find_preset(preset or default_preset(parameter_count(model)), asked.task_id)
    match = bank.config.match if bank else MatchConfig()
    plan = given.apply(ServePlan(match=match, merge=found.merge, adapt=found.adapt))
    database = open_database(store)
    people = People(
        model,
        Composition(
            store=UserStore(database),
            bank=bank,
            encoder=load_encoder(match.encoder, device=model.device) if bank else None,
            merge=plan.merge,
            top_k=plan.match.top_k,
        ),
        task=asked,
        prompts=bank.config.prompts if bank else PromptConfig(),
        config=plan.serve,
    )
    return Server(people, database, config=plan.serve, adapt=plan.adapt, open_to_all=open_to_all)


# keys -------------------------------------------------------------------------------------------------------------


def add(
    store: Store = STORE,
    tenant: TenantName = "default",
    label: Annotated[str, typer.Option("--label", help="What the key is for.")] = "key",
) -> None:
    """Make a key for a tenant, who is added if need be, and print it; it cannot be read again."""
    from mta.serving.tenants import add_key, ensure_tenant

    database = _database(store)
    typer.echo(add_key(database, ensure_tenant(database, tenant), label=label))


def listed(store: Store = STORE, as_json: options.Json = False) -> None:
    """List the keys there are, without the keys themselves."""
    from mta.serving.tenants import list_keys

    notes = list_keys(_database(store))
    if as_json:
        show_json([{"id": one.id, "tenant": one.tenant, "label": one.label, "created": one.created} for one in notes])
        return
    show_table(("id", "tenant", "label"), [(one.id, one.tenant, one.label) for one in notes])


def revoke(
    number: Annotated[int, typer.Argument(metavar="ID", help="Number of the key.")], store: Store = STORE
) -> None:
    """Take a key away."""
    from mta.serving.tenants import revoke_key

    revoke_key(_database(store), number)
    typer.echo(f"key {number} is revoked")


# people -----------------------------------------------------------------------------------------------------------


def people(store: Store = STORE, tenant: TenantName = "default", as_json: options.Json = False) -> None:
    """List a tenant's people."""
    from mta.serving.tenants import find_tenant
    from mta.serving.user_store import UserStore

    database = _database(store)
    users = UserStore(database).list_users(find_tenant(database, tenant), limit=10**6)
    if as_json:
        show_json([{"id": user.name, "items": user.items, "revision": user.revision} for user in users])
        return
    show_table(("user", "history items", "revision"), [(user.name, user.items, user.revision) for user in users])


def audit(user: Name, store: Store = STORE, tenant: TenantName = "default", as_json: options.Json = False) -> None:
    """List every place in the store where data of a person is."""
    from mta.serving.tenants import find_tenant
    from mta.serving.user_store import UserStore

    database = _database(store)
    users = UserStore(database)
    places = users.audit(users.find_user(find_tenant(database, tenant), user))
    if as_json:
        show_json(places)
        return
    show_table(("place", "rows"), list(places.items()))


def delete(user: Name, store: Store = STORE, tenant: TenantName = "default") -> None:
    """Delete a person with everything that is kept of her; a running server is better asked over its API."""
    from mta.serving.tenants import find_tenant
    from mta.serving.user_store import UserStore

    database = _database(store)
    users = UserStore(database)
    removed = users.delete_user(users.find_user(find_tenant(database, tenant), user))
    typer.echo(f"{user}: removed {', '.join(f'{count} {place}' for place, count in removed.items())}")


def export(
    given: Given,
    out: options.Out,
    users: Names = None,
    store: Store = STORE,
    tenant: TenantName = "default",
    bank: Annotated[Path | None, typer.Option("--bank", help="The bank that people are served with.")] = None,
    base: Annotated[
        str | None, typer.Option("--base-name", help="Name of the base model for the loader; else the bank's.")
    ] = None,
    rank_budget: Annotated[
        int | None, typer.Option("--rank-budget", min=1, help="Largest rank: 8, 16, 32 or 64 in vLLM. Else exact.")
    ] = None,
) -> None:
    """Write people's whole adapters as plain LoRAs in PEFT's format, which vLLM, SGLang and LoRAX load.

    Settings of the merge are for people who are not adapted yet; give those that the server has.
    """
    from mta.bank import load_bank
    from mta.config import MatchConfig, MergeConfig, TrainConfig
    from mta.encoders import load_encoder
    from mta.files import is_there, write_json
    from mta.runtime import choose_device
    from mta.serving.composition import Composition
    from mta.serving.hand_over import INDEX, export_person, index_of
    from mta.serving.tenants import find_tenant
    from mta.serving.user_store import UserStore

    if is_there(out / INDEX):
        raise ConfigError(f"{out} holds an export already; name another folder, or remove that one first")
    database = _database(store)
    people, whose = UserStore(database), find_tenant(database, tenant)
    loaded = load_bank(bank) if bank else None
    match = loaded.config.match if loaded else MatchConfig()
    plan = given.apply(ServePlan(match=match, merge=MergeConfig(), adapt=TrainConfig()))
    name = base or (loaded.base_name if loaded else None)
    if name is None:
        raise ConfigError("name the bank with --bank, or without one the base model with --base-name")
    encoder = load_encoder(match.encoder, device=choose_device("cpu")) if loaded else None
    composition = Composition(store=people, bank=loaded, encoder=encoder, merge=plan.merge, top_k=plan.match.top_k)
    chosen = [people.find_user(whose, user) for user in users] if users else people.list_users(whose, limit=10**9)
    handed = []
    for user in chosen:
        found = export_person(composition, user, out, base_model=name, rank_budget=rank_budget)
        if found is None:
            note(f"{user.name}: nothing to export; she has neither a history nor an adapter over this bank")
            continue
        handed.append(found)
        typer.echo(f"{user.name}: {found.folder}, rank {found.rank} of {found.exact_rank}, lost {found.lost:.2%}")
    write_json(out / INDEX, index_of(handed))


def _database(store: str) -> Database:
    from mta.serving.extra import need_serve_extra

    need_serve_extra()
    from mta.serving.database import open_database

    return open_database(store)
