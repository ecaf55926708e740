"""The OpenAI-compatible API: with the official client over a real socket, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient
from small_server import items, listening, running

from mta.config import EngineConfig
from mta.generation import Request, generate
from mta.serving.app import LOOPBACK, make_app
from mta.serving.server import Server

ASKED = [{"role": "user", "content": "garden garden ada 9"}]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, population=True) as made:
        yield made


@pytest.fixture
def client(server: Server) -> TestClient:
    made = TestClient(make_app(server), raise_server_exceptions=False)
    for place, name in enumerate(("ada", "bob")):
        made.post("/v1/users", json={"id": name, "history": items(*range(place, place + 4))})
    return made


def expected(server: Server, name: str | None, way: str) -> str:
    """What the library itself answers."""
    tenant = server.gate.tenant(None)
    user = server.store.find_user(tenant, name) if name else None
    people = server.people
    row = people.prompt(user, ASKED[0]["content"], way=way, reserve=people.task.max_new_tokens)
    request = Request(row, people.served(user, way=way).adapter)
    (text,) = generate(people.base, [request], max_new_tokens=people.task.max_new_tokens, engine=EngineConfig())
    return people.task.clean(text)


@pytest.mark.parametrize("name", ["ada", "bob", None])
@pytest.mark.parametrize("way", ["mta", "mta-merged", "rag", "base"])
def test_answers_are_those_of_the_library(client: TestClient, server: Server, name: str | None, way: str) -> None:
    answer = client.post("/v1/chat/completions", json={"model": way, "user": name, "messages": ASKED}).json()
    assert answer["choices"][0]["message"]["content"] == expected(server, name, way)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    from_bank = name is not None and way in ("mta", "mta-merged")
    assert answer["mta"]["served"] == ("merged" if from_bank else "base")


def test_people_and_ways_are_answered_differently(client: TestClient, server: Server) -> None:
    """Otherwise the test above would not notice a mix-up."""
    answers = {expected(server, name, way) for name, way in (("ada", "mta"), ("bob", "mta"), ("ada", "base"))}
    assert len(answers) == 3


def test_the_official_client_works_unchanged(client: TestClient, server: Server) -> None:
    with listening(server) as address:
        api = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        assert [model.id for model in api.models.list()] == ["mta", "mta-merged", "rag", "base"]
        assert api.models.retrieve("mta").owned_by == "mta"
        whole = api.chat.completions.create(model="mta", user="ada", messages=ASKED)
        pieces = api.chat.completions.create(
            model="mta", user="ada", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        events = list(pieces)
        said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        assert said == whole.choices[0].message.content
        assert events[-1].usage == whole.usage
        assert whole.model_extra is not None
        assert whole.model_extra["mta"]["served"] == "merged"
        raw = api.completions.create(model="mta", user="ada", prompt="garden", max_tokens=5, temperature=1, seed=7)
        again = api.completions.create(model="mta", user="ada", prompt="garden", max_tokens=5, temperature=1, seed=7)
        streamed = api.completions.create(
            model="mta", user="ada", prompt="garden", max_tokens=5, temperature=1, seed=7, stream=True
        )
        assert raw.choices[0].text == again.choices[0].text == "".join(event.choices[0].text for event in streamed)
        assert raw.usage is not None
        assert raw.usage.completion_tokens <= 5
        with pytest.raises(openai.NotFoundError, match="unknown model 'gpt-9'"):
            api.chat.completions.create(model="gpt-9", messages=ASKED)
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            api.chat.completions.create(
                model="mta", messages=ASKED, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
            )


def test_a_conversation_becomes_one_question(client: TestClient, server: Server) -> None:
    from mta.serving.openai_api import ChatRequest

    def question(*turns: tuple[str, str]) -> str:
        return ChatRequest(messages=[{"role": role, "content": text} for role, text in turns]).question()

    assert question(("user", "hi")) == "hi"
    assert question(("system", "Be brief."), ("user", "hi")) == "Be brief.\nhi"
    assert question(("user", "hi"), ("assistant", "yes?"), ("user", "why")) == "User: hi\nAssistant: yes?\nUser: why"
    assert question(("system", "S"), ("user", "a"), ("assistant", "b")) == "S\nUser: a\nAssistant: b"


def test_stop_texts_end_an_answer(client: TestClient) -> None:
    body = {"prompt": "garden", "max_tokens": 20, "user": "ada"}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    stop = whole[3:5]
    cut = client.post("/v1/completions", json={**body, "stop": stop}).json()["choices"][0]
    assert cut["text"] == whole[: whole.find(stop)]
    assert cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": " "}]}, "blank"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "only parts of type text",
        ),
        ({"messages": ASKED, "max_tokens": 65}, "at most 64"),
        ({"messages": ASKED, "max_tokens": 0}, "max_tokens"),
        ({"messages": ASKED, "temperature": 3}, "temperature"),
        ({"messages": ASKED, "n": 2}, "n is not supported"),
        ({"messages": ASKED, "stop": ["a"] * 5}, "stop"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "100001 characters"),
    ],
)
def test_bad_questions_are_refused_in_words(client: TestClient, body: dict, said: str) -> None:
    refused = client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert said in refused.json()["error"]["message"]


def test_neutral_parameters_pass(client: TestClient) -> None:
    neutral = {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0.0}
    assert client.post("/v1/chat/completions", json={"messages": ASKED, **neutral}).status_code == 200


def test_unknown_people_get_the_population_adapter_where_it_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, population=True, unknown="population") as server:
        made = TestClient(make_app(server))
        answer = made.post("/v1/chat/completions", json={"messages": ASKED, "user": "stranger"})
        assert answer.json()["mta"]["served"] == answer.headers["X-MTA-Served"] == "population"


def test_a_server_without_a_bank_adapts_people_over_the_base(tmp_path: Path) -> None:
    with running(tmp_path, banked=False) as server:
        made = TestClient(make_app(server))
        made.post("/v1/users", json={"id": "ada", "history": items(1, 2, 3)})
        made.post("/v1/users/ada/adapt")
        while made.get("/v1/users/ada").json()["revision"] == 0:
            assert server.worker is not None
        answer = made.post("/v1/chat/completions", json={"messages": ASKED, "user": "ada"}).json()
        assert (answer["mta"]["served"], answer["mta"]["anchors"]) == ("adapted", 0)


def test_an_overloaded_server_says_when_to_come_again(tmp_path: Path) -> None:
    with running(tmp_path, requests_per_minute=1) as server:
        made = TestClient(make_app(server))
        assert made.get("/v1/models").status_code == 200
        refused = made.get("/v1/models")
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 30


def test_large_bodies_are_refused(tmp_path: Path) -> None:
    with running(tmp_path, most_body_bytes=1000) as server:
        made = TestClient(make_app(server))
        assert made.post("/v1/completions", json={"prompt": "x" * 2000}).status_code == 413


def test_metrics_count_routes_and_tell_no_names(client: TestClient) -> None:
    client.post("/v1/users", json={"id": "zenobia"})
    client.get("/v1/users/zenobia")
    text = client.get("/metrics").text
    assert 'mta_requests_total{route="/v1/users/{name}",status="200"}' in text
    assert "zenobia" not in text


def test_a_question_of_a_deleted_person_is_a_strangers(client: TestClient, server: Server) -> None:
    client.delete("/v1/users/ada")
    answer = client.post("/v1/chat/completions", json={"messages": ASKED, "user": "ada"}).json()
    assert answer["mta"]["served"] == "base"


def test_a_server_without_keys_can_insist_on_its_own_name(server: Server) -> None:
    app = make_app(server, hosts=LOOPBACK)
    for host, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("evil.example:8000", 400)):
        assert TestClient(app).get("/v1/users", headers={"Host": host}).status_code == status
