"""Background adaptation as rows: jobs with their users, so that a server that starts again goes on where it stopped.

A job is `waiting`, `running`, `done` or `failed`, and so is each of its users. Who is deleted leaves her jobs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from mta.errors import NotFound
from mta.serving.database import Database
from mta.serving.tables import JOB_USERS, JOBS, USERS
from mta.serving.tenants import Tenant
from mta.serving.user_store import StoredUser

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
UNFINISHED = (WAITING, RUNNING)


@dataclass(frozen=True, slots=True)
class Job:
    """One order to adapt some users."""

    id: str
    tenant_id: int
    state: str
    created: float
    """Seconds since 1970, as the next two."""
    started: float | None
    finished: float | None
    message: str
    users: dict[str, int]
    """State -> users in it."""


class JobStore:
    """The jobs of all tenants in one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, tenant: Tenant, users: Sequence[StoredUser]) -> Job:
        """Order the adaptation of users."""
        job_id = uuid.uuid4().hex
        values = {"id": job_id, "tenant_id": tenant.id, "state": WAITING, "created": time.time(), "message": ""}
        with self.database.writing() as connection:
            connection.execute(insert(JOBS).values(values))
            rows = [{"job_id": job_id, "user_id": user.id, "state": WAITING, "message": ""} for user in users]
            connection.execute(insert(JOB_USERS), rows)
        return self.find(tenant, job_id)

    def find(self, tenant: Tenant, job_id: str) -> Job:
        """Return a tenant's job.

        Raises:
            NotFound: the tenant has no such job.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                select(JOBS).where(JOBS.c.id == job_id, JOBS.c.tenant_id == tenant.id)
            ).one_or_none()
            if row is None:
                raise NotFound(f"no job {job_id[:40]!r}; jobs are forgotten a day after they end")
            return Job(**row._mapping, users=_states(connection, job_id))

    def messages(self, job: Job) -> dict[str, str]:
        """Return what is to be said of a job's users, by name, where there is something."""
        chosen = select(USERS.c.name, JOB_USERS.c.message).join(USERS, USERS.c.id == JOB_USERS.c.user_id)
        with self.database.reading() as connection:
            rows = connection.execute(chosen.where(JOB_USERS.c.job_id == job.id, JOB_USERS.c.message != ""))
            return {row.name: row.message for row in rows}

    def next_users(self, count: int) -> list[tuple[str, int]]:
        """Return the next (job, user number) to be adapted, oldest job first; interrupted ones are waiting again."""
        chosen = (
            select(JOB_USERS.c.job_id, JOB_USERS.c.user_id)
            .join(JOBS, JOBS.c.id == JOB_USERS.c.job_id)
            .where(JOBS.c.state.in_(UNFINISHED), JOB_USERS.c.state == WAITING)
            .order_by(JOBS.c.created, JOB_USERS.c.user_id)
        )
        with self.database.reading() as connection:
            return [(job_id, user_id) for job_id, user_id in connection.execute(chosen.limit(count))]

    def start(self, job_id: str) -> None:
        """Write down that work on a job has begun."""
        with self.database.writing() as connection:
            begun = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.state == WAITING)
            connection.execute(begun.values(state=RUNNING, started=time.time()))

    def finish_user(self, job_id: str, user_id: int, *, state: str, message: str = "") -> None:
        """Write down how a user's adaptation ended; the job ends with its last user."""
        with self.database.writing() as connection:
            connection.execute(
                update(JOB_USERS)
                .where(JOB_USERS.c.job_id == job_id, JOB_USERS.c.user_id == user_id)
                .values(state=state, message=message)
            )
            _end_if_complete(connection, job_id)

    def end_complete_jobs(self) -> None:
        """End jobs that have no user left to adapt, for example because their users were deleted."""
        with self.database.writing() as connection:
            for (job_id,) in connection.execute(select(JOBS.c.id).where(JOBS.c.state.in_(UNFINISHED))).all():
                _end_if_complete(connection, job_id)

    def forget_ended(self, *, before: float) -> int:
        """Delete jobs that ended before a time in seconds since 1970; return how many."""
        with self.database.writing() as connection:
            return int(connection.execute(delete(JOBS).where(JOBS.c.finished < before)).rowcount)


def _states(connection: Connection, job_id: str) -> dict[str, int]:
    """Return how many of a job's users are in which state."""
    counted = select(JOB_USERS.c.state, func.count().label("users")).where(JOB_USERS.c.job_id == job_id)
    return {row.state: row.users for row in connection.execute(counted.group_by(JOB_USERS.c.state))}


def _end_if_complete(connection: Connection, job_id: str) -> None:
    """End a job that has no user left to adapt; it has failed where all of them have."""
    states = _states(connection, job_id)
    if WAITING in states:
        return
    unfinished = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.state.in_(UNFINISHED))
    connection.execute(unfinished.values(state=FAILED if set(states) == {FAILED} else DONE, finished=time.time()))
