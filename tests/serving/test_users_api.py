"""People over the API: create, append, read, adapt in the background, delete; tenants see only their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from small_server import items, running

from mta.serving.app import make_app
from mta.serving.server import Server
from mta.serving.tenants import add_key, ensure_tenant


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def client(server: Server) -> TestClient:
    return TestClient(make_app(server), raise_server_exceptions=False)


def wait_for(client: TestClient, job_id: str) -> dict:
    """Read a job until it has ended."""
    for _ in range(2000):
        job = client.get(f"/v1/jobs/{job_id}").json()
        if job["state"] in ("done", "failed"):
            return job
    raise AssertionError(job)


def test_a_person_from_creation_to_deletion(client: TestClient, server: Server) -> None:
    made = client.post("/v1/users", json={"id": "ada"})
    assert made.status_code == 201
    assert (made.json()["served"], made.json()["adapted"], made.json()["anchors"]) == ("base", False, [])
    added = client.post("/v1/users/ada/history", json={"items": items(1, 2, 3, 4)})
    assert added.json() == {"id": "ada", "added": 4, "items": 4}
    state = client.get("/v1/users/ada").json()
    assert state["served"] == "merged"
    assert sum(anchor["weight"] for anchor in state["anchors"]) == pytest.approx(1, abs=1e-4)
    ordered = client.post("/v1/users/ada/adapt")
    assert ordered.status_code == 202
    job = wait_for(client, ordered.json()["id"])
    assert (job["state"], job["users"]) == ("done", {"done": 1})
    state = client.get("/v1/users/ada").json()
    assert (state["served"], state["adapted"], state["revision"]) == ("adapted", True, 1)
    assert len(state["adapter"]["losses"]) == state["adapter"]["updates"] > 0
    assert not state["adapter"]["stale"]
    answer = client.post(
        "/v1/chat/completions", json={"user": "ada", "messages": [{"role": "user", "content": "garden 9"}]}
    )
    assert answer.json()["mta"]["served"] == "adapted"
    places = client.get("/v1/users/ada/audit").json()["places"]
    assert places == {
        "user": 1, "history items": 4, "vector and matched anchors": 1, "adapter revisions": 1, "places in jobs": 1,
        "adapters in memory": 1,
    }  # fmt: skip
    removed = client.delete("/v1/users/ada").json()["removed"]
    assert removed == places
    assert client.get("/v1/users/ada").status_code == 404
    assert len(server.people.cache) == 0


def test_the_same_items_are_not_kept_twice_and_changed_ones_are_refused(client: TestClient) -> None:
    unnamed = [{"fields": {"input": "a", "output": "b"}}]
    client.post("/v1/users", json={"id": "ada", "history": [*items(1), *unnamed]})
    assert client.post("/v1/users/ada/history", json={"items": [*items(1, 2), *unnamed]}).json()["added"] == 1
    changed = [{"id": "i1", "fields": {"input": "garden 1", "output": "something else"}}]
    refused = client.post("/v1/users/ada/history", json={"items": changed})
    assert refused.status_code == 409
    assert "give the new one an id of its own" in refused.json()["error"]["message"]
    found = client.get("/v1/users/ada/history", params={"start": 1, "limit": 1}).json()["items"]
    assert [item["fields"] for item in found] == [unnamed[0]["fields"]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"id": ""}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "a\x07b"}, "printable"),
        ({"id": "x" * 300}, "id"),
        ({"id": "ada", "histori": []}, "histori"),
        ({"id": "ada", "history": [{"fields": {"input": "a"}}]}, "lacks output"),
        ({"id": "ada", "history": items(*range(51))}, "at most 50"),
    ],
)
def test_bad_people_are_refused_in_words(client: TestClient, body: dict, said: str) -> None:
    refused = client.post("/v1/users", json=body)
    assert refused.status_code == 400
    assert said in refused.json()["error"]["message"]
    assert client.get("/v1/users").json()["users"] == []


def test_people_are_listed_in_pages(client: TestClient) -> None:
    for name in ("bob", "ada", "cy"):
        client.post("/v1/users", json={"id": name})
    first = client.get("/v1/users", params={"limit": 2}).json()
    assert [user["id"] for user in first["users"]] == ["ada", "bob"]
    second = client.get("/v1/users", params={"limit": 2, "after": first["next"]}).json()
    assert [user["id"] for user in second["users"]] == ["cy"]
    assert second["next"] is None


def test_who_cannot_be_adapted_is_said(client: TestClient) -> None:
    client.post("/v1/users", json={"id": "blank"})
    client.post("/v1/users", json={"id": "ada", "history": items(1, 2, 3)})
    job = wait_for(client, client.post("/v1/adapt", json={"users": ["ada", "blank", "ada"]}).json()["id"])
    assert job["users"] == {"done": 1, "failed": 1}
    assert "no training example" in job["messages"]["blank"]
    assert client.post("/v1/adapt", json={"users": ["nobody"]}).status_code == 404


def test_tenants_see_only_their_own(tmp_path: Path) -> None:
    with running(tmp_path, open_to_all=False) as server:
        keys = {name: add_key(server.database, ensure_tenant(server.database, name), label="k") for name in ("a", "b")}
        client = TestClient(make_app(server))
        a, b = ({"Authorization": f"Bearer {key}"} for key in keys.values())
        assert client.get("/v1/users").status_code == 401
        assert client.get("/v1/users", headers={"Authorization": "Bearer mta-wrong"}).status_code == 401
        assert client.post("/v1/users", json={"id": "ada", "history": items(1)}, headers=a).status_code == 201
        job = client.post("/v1/users/ada/adapt", headers=a).json()
        for method, path in (
            ("GET", "/v1/users/ada"), ("DELETE", "/v1/users/ada"), ("GET", "/v1/users/ada/history"),
            ("GET", "/v1/users/ada/audit"), ("POST", "/v1/users/ada/adapt"), ("GET", f"/v1/jobs/{job['id']}"),
        ):  # fmt: skip
            assert client.request(method, path, headers=b).status_code == 404, path
        assert client.get("/v1/users", headers=b).json()["users"] == []
        asked = {"user": "ada", "messages": [{"role": "user", "content": "garden"}]}
        assert client.post("/v1/chat/completions", json=asked, headers=b).json()["mta"]["served"] == "base"
        assert client.post("/v1/chat/completions", json=asked, headers=a).json()["mta"]["served"] != "base"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
