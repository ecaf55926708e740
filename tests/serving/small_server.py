"""A server small enough to start in a blink, over HTTP in this process or for real."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import uvicorn

from helpers import tiny_base
from mta.bank import Bank
from mta.serving.app import make_app
from mta.serving.composition import Composition
from mta.serving.database import Database, open_database
from mta.serving.people import People
from mta.serving.server import Server
from mta.serving.settings import ServeConfig
from mta.serving.user_store import UserStore
from small_world import ADAPT, ENCODER, OWN, PROMPTS, invented_bank

CONFIG = ServeConfig(most_history=50, most_new_tokens=64, adapter_numbers="float32", adapt_patience_s=0.1)
ITEM = {"fields": {"input": "garden garden", "output": "rose"}}


def items(*numbers: int) -> list[dict[str, object]]:
    """History items as the API takes them."""
    return [{"id": f"i{n}", "fields": {"input": f"garden {n}", "output": f"rose {n}"}} for n in numbers]


def small_server(
    database: Database, *, bank: Bank | None, config: ServeConfig = CONFIG, open_to_all: bool = True
) -> Server:
    """Make a server over a tiny random model."""
    people = People(
        tiny_base(torch.float32),
        Composition(store=UserStore(database), bank=bank, encoder=ENCODER),
        task=OWN,
        prompts=PROMPTS,
        config=config,
    )
    return Server(people, database, config=config, adapt=ADAPT, open_to_all=open_to_all)


@contextmanager
def running(
    folder: Path, *, banked: bool = True, population: bool = False, open_to_all: bool = True, **options: object
) -> Iterator[Server]:
    """Start a server's threads over a database and a bank in a folder."""
    # adapters large enough that people are answered differently
    bank = invented_bank(folder / "bank", population=population, size=1.0) if banked else None
    config = replace(CONFIG, **options)  # type: ignore[arg-type]
    database = open_database(f"sqlite:///{folder / 'users.db'}")
    with small_server(database, bank=bank, config=config, open_to_all=open_to_all) as server:
        yield server


@contextmanager
def listening(server: Server, *, playground: bool = False) -> Iterator[str]:
    """Serve over a real socket; yield the address."""
    app = make_app(server, playground=playground)
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=http.run, daemon=True)
    thread.start()
    while not http.started:
        thread.join(0.01)
    port = http.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    http.should_exit = True
    thread.join()
