"""A page at / to try a server: pick somebody, see what is known of her, ask four ways side by side, adapt and watch.

Everything goes through the same store, queue and jobs as the API. Where the server asks for keys, the page does too.

Example:
    >>> mount_playground(app, server)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr
import pandas as pd
import torch
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from mta.errors import DataError, MtaError, NotFound
from mta.serving.answering import Question, ask
from mta.serving.people import BASE, MERGED, MTA, RAG, WAYS
from mta.serving.people_map import draw_map, on_a_plane
from mta.serving.server import Server
from mta.serving.tenants import Tenant
from mta.serving.user_store import StoredUser
from mta.serving.users_api import Item, append_items, job_state, user_state

SIDE_BY_SIDE = (BASE, RAG, MERGED, MTA)
LISTED, SHOWN, ON_THE_MAP = 1000, 50, 300
"""People to choose from, history items in the table, and people on the map, at most."""
ANCHOR_COLUMNS = ["anchor", "weight", "similarity"]
LOOK_S = 0.5
"""How often adaptation is looked at."""
FONT = ["system-ui", "sans-serif"]
"""Of the machine: nothing is fetched from elsewhere."""
CSS = ".gradio-container { max-width: 1180px !important; margin: auto }"


def mount_playground(app: FastAPI, server: Server) -> None:
    """Put the page at / of a server's app, below all its routes."""
    theme = gr.themes.Default(font=FONT, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, make_page(Playground(server)), path="/", theme=theme, css=CSS, footer_links=[], run_history=False,
        max_file_size=server.config.most_body_bytes,
    )  # fmt: skip


class Playground:
    """What the page's parts do; every call is made for the tenant of a key ("" where none is asked for)."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def _tenant(self, key: str) -> Tenant:
        return self.server.gate.tenant(f"Bearer {key}" if key else None)

    def _find(self, tenant: Tenant, name: str | None) -> StoredUser:
        if not name:
            raise DataError("nobody is chosen; pick a person, or make one below")
        return self.server.store.find_user(tenant, name)

    # what is known ------------------------------------------------------------------------------------------------

    def names(self, key: str) -> list[str]:
        """Return the people to choose from."""
        return [user.name for user in self.server.store.list_users(self._tenant(key), limit=LISTED)]

    def about(self, key: str, name: str | None) -> tuple[str, list[list[Any]], list[list[str]], Any]:
        """Return what is known of a person: in words, her anchors, her history, and the map."""
        user = self._find(self._tenant(key), name)
        state = user_state(self.server, user)
        anchors = [[one["anchor"], one["weight"], one["similarity"]] for one in state["anchors"]]
        return in_words(state), anchors, self._history(user), self._map(user)

    def _history(self, user: StoredUser) -> list[list[str]]:
        task = self.server.people.task
        newest = self.server.store.history(user)[: -SHOWN - 1 : -1]
        return [[item.fields.get(field, "") for field in (task.input_field, task.output_field)] for item in newest]

    def _map(self, user: StoredUser) -> Any:
        composition, store = self.server.people.composition, self.server.store
        if composition.bank is None:
            return None
        anchor_ids = composition.bank.anchor_ids
        people = store.list_vectors(user.tenant_id, found_by=composition.found_by, limit=ON_THE_MAP)
        known = store.load_match(user)
        here = known if known and known.found_by == composition.found_by else None
        if here:
            people[user.name] = here.vector
        vectors = [composition.bank.active_vectors.float().cpu(), *(vector[None] for vector in people.values())]
        places = on_a_plane(torch.cat(vectors))
        return draw_map(
            places[: len(anchor_ids)],
            places[len(anchor_ids) :],
            chosen=list(people).index(user.name) if here else None,
            nearest=[anchor_ids.index(one) for one in here.match.anchor_ids] if here else [],
        )

    # changes ------------------------------------------------------------------------------------------------------

    def save(self, key: str, name: str, lines: str) -> str:
        """Append items to a person's history, who is made if need be; return what was done."""
        tenant, items = self._tenant(key), read_items(lines)
        server = self.server
        server.people.check_items([item.record() for item in items])
        try:
            user, made = server.store.find_user(tenant, name), False
        except NotFound:
            user, made = server.store.create_user(tenant, name), True
        added = append_items(server, user, items) if items else 0
        return f"{'made' if made else 'found'} {name}, added {added} of {len(items)} items"

    async def adapt(self, key: str, name: str | None) -> AsyncIterator[tuple[str, pd.DataFrame]]:
        """Order a person's adaptation; yield how far it is and the loss of each update so far."""
        tenant = await run_in_threadpool(self._tenant, key)
        user = await run_in_threadpool(self._find, tenant, name)
        job = await run_in_threadpool(self.server.jobs.add, tenant, [user])
        self.server.worker.wake()
        losses: list[float] = []
        while True:
            state = await run_in_threadpool(self._job, tenant, job.id)
            losses = list(self.server.worker.losses.get(user.id, losses))
            if state["state"] in ("done", "failed"):
                break
            yield f"{state['state']}, {len(losses)} updates", loss_table(losses)
            await asyncio.sleep(LOOK_S)
        head = await run_in_threadpool(self.server.store.load_head, user)
        kept = list(head.note.get("losses", losses)) if head and state["state"] == "done" else losses
        said = "; ".join(
            [f"{state['state']} after {state['seconds']} s, {len(kept)} updates", *state["messages"].values()]
        )
        yield said, loss_table(kept)

    def _job(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        return job_state(self.server, self.server.jobs.find(tenant, job_id))

    # answers ------------------------------------------------------------------------------------------------------

    async def ask(self, key: str, name: str | None, text: str) -> AsyncIterator[list[str]]:
        """Ask one question every way at once; yield the texts as they grow, in the order of `SIDE_BY_SIDE`."""
        if not text.strip():
            raise DataError("there is no question; type one")
        tenant = await run_in_threadpool(self._tenant, key)
        told = [""] * len(SIDE_BY_SIDE)
        news: asyncio.Queue[BaseException | None] = asyncio.Queue()

        async def one(place: int) -> None:
            try:
                question = Question(tenant=tenant, person=name or None, text=text, way=SIDE_BY_SIDE[place])
                async for piece in (await ask(self.server, question)).pieces():
                    told[place] += piece
                    news.put_nowait(None)
            except Exception as error:
                news.put_nowait(error)

        asked = asyncio.gather(*(one(place) for place in range(len(SIDE_BY_SIDE))))
        asked.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while not (asked.done() and news.empty()):
                if error := await news.get():
                    raise error
                yield list(told)
        finally:
            asked.cancel()


def read_items(lines: str) -> list[Item]:
    """Return history items, one JSON object of fields a line.

    Raises:
        DataError: a line is none.
    """
    items = []
    for number, line in enumerate(lines.splitlines(), 1):
        if line.strip():
            try:
                items.append(Item.model_validate({"fields": json.loads(line)}))
            except ValueError:
                raise DataError(f"line {number}: wanted one JSON object of texts, got {line[:60]!r}") from None
    return items


def in_words(state: dict[str, Any]) -> str:
    """Return a person's state as Markdown."""
    lines = [f"**{state['id']}**: {state['items']} items, answered with **{state['served']}**"]
    if adapter := state["adapter"]:
        stale = ", older than the history" if adapter["stale"] else ""
        lines.append(
            f"adapter: revision {adapter['revision']}, {adapter['bytes'] / 1000:.0f} kB, "
            f"trained on {adapter['items']} items{stale}"
        )
    return "  \n".join(lines)


def loss_table(losses: Sequence[float]) -> pd.DataFrame:
    """Return losses as the plot takes them."""
    return pd.DataFrame({"update": range(1, len(losses) + 1), "loss": list(losses)})


# the page ---------------------------------------------------------------------------------------------------------


def make_page(does: Playground) -> gr.Blocks:
    """Lay out the page and connect its parts."""
    server, task = does.server, does.server.people.task
    bank = server.people.composition.bank
    over = f"a bank of {len(bank.anchor_ids)} anchors" if bank else "no bank: nothing is merged"
    item = json.dumps(dict.fromkeys(task.required_fields, "..."))
    with gr.Blocks(title="mta", analytics_enabled=False) as page:
        gr.Markdown(f"# mta\n{server.people.base.name}, {task.title}, {over}")
        key = gr.Textbox(label="API key", type="password", visible=server.gate.needs_keys, elem_id="key")
        with gr.Row():
            with gr.Column(min_width=320):
                who = gr.Dropdown(label="Person", choices=[], elem_id="who")
                about = gr.Markdown(elem_id="about")
                anchors = gr.Dataframe(headers=ANCHOR_COLUMNS, label="Merged from", elem_id="anchors")
                with gr.Accordion("New person, or more history", open=False):
                    name = gr.Textbox(label="Name", elem_id="name")
                    lines = gr.Textbox(label="Items, one a line", placeholder=item, lines=4, elem_id="lines")
                    save = gr.Button("Save", elem_id="save")
            with gr.Column(min_width=320, visible=bank is not None):
                picture = gr.Plot(show_label=False, elem_id="map")
        text = gr.Textbox(label="Question", lines=3, elem_id="question")
        send = gr.Button("Ask all four ways", variant="primary", elem_id="ask")
        with gr.Row():
            answers = [
                gr.Textbox(label=way, info=WAYS[way], lines=3, elem_id=f"answer-{way}", min_width=220)
                for way in SIDE_BY_SIDE
            ]
        adapt = gr.Button("Adapt this person", elem_id="adapt")
        told = gr.Markdown(elem_id="told")
        losses = gr.LinePlot(
            loss_table([]), x="update", y="loss", title="Loss of each update", height=260, x_axis_format="d"
        )
        history = gr.Dataframe(
            headers=[task.input_field, task.output_field], label="History, newest first", wrap=True, elem_id="history"
        )
        known = [about, anchors, history, picture]
        refresh: dict[str, Any] = {"fn": _told(does.about), "inputs": [key, who], "outputs": known}
        choices: dict[str, Any] = {"fn": _told(lambda k: gr.Dropdown(choices=does.names(k))), "outputs": who}
        if not server.gate.needs_keys:
            page.load(**choices, inputs=key)
        key.submit(**choices, inputs=key)
        who.input(**refresh)
        save.click(_told(does.save), [key, name, lines], told).success(
            _told(lambda k, n: gr.Dropdown(choices=does.names(k), value=n)), [key, name], who
        ).success(**refresh)
        send.click(_told_as_it_comes(does.ask), [key, who, text], answers, concurrency_limit=None)
        adapt.click(_told_as_it_comes(does.adapt), [key, who], [told, losses], concurrency_limit=None).success(
            **refresh
        )
    return page


def _told(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that tells errors of this package on the page."""

    def handler(*given: Any) -> Any:
        try:
            return work(*given)
        except MtaError as error:
            raise gr.Error(str(error)) from None

    return handler


def _told_as_it_comes(work: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Return a handler that yields what the work yields and tells errors of this package on the page."""

    async def handler(*given: Any) -> AsyncIterator[Any]:
        try:
            async for found in work(*given):
                yield found
        except MtaError as error:
            raise gr.Error(str(error)) from None

    return handler
