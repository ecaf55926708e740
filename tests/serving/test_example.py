"""The example of docs/serving.md, against a real server."""

from __future__ import annotations

import runpy
from pathlib import Path

import httpx
from small_server import listening, running

from small_world import small_targets

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "two_people.py"


def test_two_people_are_made_adapted_and_asked(tmp_path: Path) -> None:
    does = runpy.run_path(str(SCRIPT))
    people = small_targets()[:2]
    with running(tmp_path) as server, listening(server) as address, httpx.Client(base_url=address) as client:
        for user in (*people, *people):  # who is there already stays as she is
            does["create"](client, user)
        assert [does["ask"](client, user, "garden")["mta"]["served"] for user in people] == ["merged"] * 2
        does["adapt"](client, people)
        assert [does["ask"](client, user, "garden")["mta"]["served"] for user in people] == ["adapted"] * 2
