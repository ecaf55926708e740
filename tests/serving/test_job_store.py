"""Jobs as rows: they go on after a restart and end with their last user."""

from __future__ import annotations

import time

import pytest

from mta.errors import NotFound
from mta.serving.database import Database, open_database
from mta.serving.job_store import DONE, FAILED, RUNNING, WAITING, JobStore
from mta.serving.tenants import Tenant, add_tenant, find_tenant
from mta.serving.user_store import StoredUser, UserStore


def people(database: Database, *names: str) -> tuple[Tenant, list[StoredUser]]:
    tenant = add_tenant(database, "acme")
    store = UserStore(database)
    return tenant, [store.create_user(tenant, name) for name in names]


def test_a_job_s_way(database: Database) -> None:
    tenant, users = people(database, "ada", "bob")
    jobs = JobStore(database)
    job = jobs.add(tenant, users)
    assert (job.state, job.users) == (WAITING, {WAITING: 2})
    assert jobs.next_users(10) == [(job.id, users[0].id), (job.id, users[1].id)]
    jobs.start(job.id)
    assert jobs.find(tenant, job.id).state == RUNNING
    jobs.finish_user(job.id, users[0].id, state=DONE)
    assert jobs.next_users(10) == [(job.id, users[1].id)]
    jobs.finish_user(job.id, users[1].id, state=FAILED, message="no history")
    ended = jobs.find(tenant, job.id)
    assert (ended.state, ended.users) == (DONE, {DONE: 1, FAILED: 1})
    assert ended.finished is not None
    assert jobs.messages(job) == {"bob": "no history"}
    assert jobs.next_users(10) == []


def test_a_job_whose_users_all_fail_has_failed(database: Database) -> None:
    tenant, users = people(database, "ada")
    jobs = JobStore(database)
    job = jobs.add(tenant, users)
    jobs.finish_user(job.id, users[0].id, state=FAILED, message="no history")
    assert jobs.find(tenant, job.id).state == FAILED


def test_older_jobs_come_first_and_survive_a_restart(url: str) -> None:
    first = open_database(url)
    tenant, users = people(first, "ada", "bob")
    jobs = JobStore(first)
    older, newer = jobs.add(tenant, users[1:]), jobs.add(tenant, users[:1])
    jobs.start(older.id)
    first.close()
    second = open_database(url)
    again = JobStore(second)
    assert again.next_users(1) == [(older.id, users[1].id)]
    assert [job_id for job_id, _ in again.next_users(10)] == [older.id, newer.id]
    assert again.find(find_tenant(second, "acme"), older.id).state == RUNNING
    second.close()


def test_deleting_a_user_takes_her_out_of_jobs(database: Database) -> None:
    tenant, users = people(database, "ada", "bob")
    jobs = JobStore(database)
    job = jobs.add(tenant, users)
    jobs.finish_user(job.id, users[0].id, state=DONE)
    assert UserStore(database).delete_user(users[1])["places in jobs"] == 1
    assert jobs.next_users(10) == []
    jobs.end_complete_jobs()
    assert jobs.find(tenant, job.id).state == DONE


def test_jobs_belong_to_a_tenant_and_are_forgotten(database: Database) -> None:
    tenant, users = people(database, "ada")
    other = add_tenant(database, "other")
    jobs = JobStore(database)
    job = jobs.add(tenant, users)
    with pytest.raises(NotFound, match="no job"):
        jobs.find(other, job.id)
    assert jobs.forget_ended(before=time.time() + 1) == 0  # it has not ended
    jobs.finish_user(job.id, users[0].id, state=DONE)
    assert jobs.forget_ended(before=time.time() + 1) == 1
    with pytest.raises(NotFound, match="no job"):
        jobs.find(tenant, job.id)
