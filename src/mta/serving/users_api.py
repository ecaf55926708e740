"""The API's part about people: create, append history, read, adapt in the background, delete."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from mta.errors import DataError
from mta.files import sha256_json
from mta.records import HistoryItem
from mta.serving.job_store import Job
from mta.serving.server import Server
from mta.serving.tables import LONGEST_NAME
from mta.serving.tenants import Tenant
from mta.serving.user_store import StoredUser

NAME = r"^[^/\\]+$"
"""Names of people stand in paths, so that a slash cannot be in one."""
MOST_AT_ONCE = 10_000
"""People or items in one request."""


class Strict(BaseModel):
    """A body in which unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid")


class Item(Strict):
    """One past record of a person."""

    id: str | None = Field(None, min_length=1, max_length=LONGEST_NAME)
    """Unique within the history; None: made of the texts, so that the same record is not kept twice."""
    fields: dict[str, str] = Field(min_length=1, max_length=50)
    time: str | None = Field(None, max_length=LONGEST_NAME)

    def record(self) -> HistoryItem:
        """Return it as a record of the package."""
        item_id = self.id or sha256_json([self.fields, self.time])[:24]
        return HistoryItem(item_id, self.fields, self.time)


class NewUser(Strict):
    """Body of POST /v1/users."""

    id: str = Field(min_length=1, max_length=LONGEST_NAME, pattern=NAME)
    history: list[Item] = Field(default_factory=list, max_length=MOST_AT_ONCE)


class NewItems(Strict):
    """Body of POST /v1/users/{id}/history."""

    items: list[Item] = Field(min_length=1, max_length=MOST_AT_ONCE)


class Adapt(Strict):
    """Body of POST /v1/adapt."""

    users: list[str] = Field(min_length=1, max_length=MOST_AT_ONCE)


def user_routes(server: Server) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["people"])
    store = server.store

    def found(request: Request, name: str) -> StoredUser:
        return store.find_user(request.state.tenant, name)

    @routes.post("/v1/users", status_code=201)
    def create(body: NewUser, request: Request) -> dict[str, Any]:
        """Create a person, with a history or without."""
        server.people.check_items([item.record() for item in body.history])
        if len(body.history) > server.config.most_history:
            raise DataError(f"{len(body.history)} history items; at most {server.config.most_history}")
        user = store.create_user(request.state.tenant, body.id)
        if body.history:
            append_items(server, user, body.history)
        return user_state(server, found(request, body.id))

    @routes.get("/v1/users")
    def listed(
        request: Request,
        after: str = Query("", max_length=LONGEST_NAME),
        limit: int = Query(100, ge=1, le=1000),
    ) -> dict[str, Any]:
        """List people by name."""
        users = store.list_users(request.state.tenant, after=after, limit=limit)
        return {"users": [_summary(user) for user in users], "next": users[-1].name if len(users) == limit else None}

    @routes.get("/v1/users/{name}")
    def read(name: str, request: Request) -> dict[str, Any]:
        """Read what is known of a person: anchors, weights, revision, whether she is adapted."""
        return user_state(server, found(request, name))

    @routes.delete("/v1/users/{name}")
    def delete(name: str, request: Request) -> dict[str, Any]:
        """Delete a person with all that is kept of her, and say what that was."""
        return {"id": name, "deleted": True, "removed": server.delete(found(request, name))}

    @routes.get("/v1/users/{name}/audit")
    def audit(name: str, request: Request) -> dict[str, Any]:
        """List every place where data of a person is."""
        user = found(request, name)
        return {"id": name, "places": {**store.audit(user), "adapters in memory": server.people.cache.count(user.id)}}

    @routes.post("/v1/users/{name}/history")
    def add_items(name: str, body: NewItems, request: Request) -> dict[str, Any]:
        """Append items to a history; one that is there already, word for word, is not added again."""
        user = found(request, name)
        added = append_items(server, user, body.items)
        return {"id": name, "added": added, "items": user.items + added}

    @routes.get("/v1/users/{name}/history")
    def history(
        name: str, request: Request, start: int = Query(0, ge=0), limit: int = Query(100, ge=1, le=1000)
    ) -> dict[str, Any]:
        """Read a history, oldest item first."""
        user = found(request, name)
        items = store.history(user)[start : start + limit]
        return {"id": name, "items": [{"id": i.item_id, "fields": dict(i.fields), "time": i.time} for i in items]}

    @routes.post("/v1/users/{name}/adapt", status_code=202)
    def adapt_one(name: str, request: Request) -> dict[str, Any]:
        """Adapt a person in the background."""
        return order(request.state.tenant, [found(request, name)])

    @routes.post("/v1/adapt", status_code=202)
    def adapt_many(body: Adapt, request: Request) -> dict[str, Any]:
        """Adapt many people in the background, together."""
        return order(request.state.tenant, [found(request, name) for name in dict.fromkeys(body.users)])

    def order(tenant: Tenant, users: list[StoredUser]) -> dict[str, Any]:
        job = server.jobs.add(tenant, users)
        server.worker.wake()
        return job_state(server, job)

    @routes.get("/v1/jobs/{job_id}")
    def job(job_id: str, request: Request) -> dict[str, Any]:
        """Say how far a job is."""
        return job_state(server, server.jobs.find(request.state.tenant, job_id))

    return routes


def _summary(user: StoredUser) -> dict[str, Any]:
    return {
        "id": user.name,
        "created": user.created,
        "items": user.items,
        "revision": user.revision,
        "adapted": user.revision > 0,
    }


def append_items(server: Server, user: StoredUser, items: list[Item]) -> int:
    """Append items to a person's history and return how many were new; see `UserStore.append_history`."""
    records = [item.record() for item in items]
    server.people.check_items(records)
    return server.store.append_history(user, records, most=server.config.most_history)


def user_state(server: Server, user: StoredUser) -> dict[str, Any]:
    """Return what is known of a person, as the API tells it."""
    served = server.people.served(user, way="mta")
    head = server.store.load_head(user)
    match = served.match
    anchors = zip(match.anchor_ids, match.similarities, match.weights, strict=True) if match else ()
    return {
        **_summary(user),
        "served": served.what,
        "adapting": server.worker.losses.get(user.id),
        "anchors": [{"anchor": name, "similarity": round(s, 5), "weight": round(w, 5)} for name, s, w in anchors],
        "adapter": head and {
            "revision": head.number,
            "items": head.items,
            "bytes": head.bytes,
            "created": head.created,
            "stale": head.items != user.items,
            **head.note,
        },
    }  # fmt: skip


def job_state(server: Server, job: Job) -> dict[str, Any]:
    """Return how far a job is, as the API tells it."""
    return {
        "id": job.id,
        "state": job.state,
        "users": job.users,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "seconds": round((job.finished or time.time()) - job.started, 2) if job.started else None,
        "messages": server.jobs.messages(job),
    }
