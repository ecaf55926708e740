"""Two people, one question, two answers: create them on a running server, adapt them, ask both.

    mta serve --bank runs/demo/bank --store sqlite:///users.db     # in another terminal
    python examples/two_people.py [--data runs/demo/data/target_questions.json] [--server http://127.0.0.1:8000]

People, histories and the question are those that `mta demo` has left in its data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import httpx

from mta.data.read import read_users
from mta.records import User


def create(client: httpx.Client, user: User) -> None:
    """Create a person with her history; one who is there already stays as she is."""
    items = [{"id": item.item_id, "fields": dict(item.fields), "time": item.time} for item in user.history]
    answer = client.post("/v1/users", json={"id": user.user_id, "history": items})
    if answer.status_code != 409:
        answer.raise_for_status()


def adapt(client: httpx.Client, people: list[User]) -> None:
    """Order the adaptation of people and wait for it."""
    print("adapting (a minute or two on a CPU) ...", flush=True)
    job = client.post("/v1/adapt", json={"users": [user.user_id for user in people]}).raise_for_status().json()
    while job["state"] in ("waiting", "running"):
        time.sleep(0.5)
        job = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    print(f"adaptation {job['state']} after {job['seconds']} s")


def ask(client: httpx.Client, user: User, question: str) -> dict[str, Any]:
    """Ask a question as somebody."""
    body = {"model": "mta", "user": user.user_id, "messages": [{"role": "user", "content": question}]}
    found: dict[str, Any] = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return found


def main() -> None:
    """Do it and print the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data/target_questions.json"))
    parser.add_argument("--task", default="lamp-4")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    people = list(read_users(options.data, task=options.task).users[:2])
    question = people[0].queries[0].text
    print(question)
    with httpx.Client(base_url=options.server, timeout=300) as client:
        for user in people:
            create(client, user)
        for stage in ("merged anchors", "adapted"):
            if stage == "adapted":
                adapt(client, people)
            for user in people:
                found = ask(client, user, question)
                print(f"{user.user_id} ({found['mta']['served']}): {found['choices'][0]['message']['content']}")


if __name__ == "__main__":
    main()
