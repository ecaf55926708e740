"""The page at /, in a real browser: pick, ask, adapt, make somebody new; nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import httpx
import pytest
from small_server import items, listening, running
from test_openai_api import ASKED, expected

from mta.serving.server import Server

pytest.importorskip("gradio", reason="the page needs gradio: pip install mta[serve]")
browsers = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright: pip install mta[dev]")
from playwright.sync_api import Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DESKTOP, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with browsers.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, population=True) as made:
        yield made


@pytest.fixture
def address(server: Server) -> Iterator[str]:
    with listening(server, playground=True) as address:
        for place, name in enumerate(("ada", "bob")):
            made = httpx.post(f"{address}/v1/users", json={"id": name, "history": items(*range(place, place + 4))})
            assert made.status_code == 201
        yield address


@pytest.fixture
def page(browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page as it opens, watched: errors of its scripts and requests to other places fail the test."""
    opened = browser.new_page(viewport=getattr(request, "param", DESKTOP))
    opened.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    hosts: set[str | None] = set()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", lambda dialog: errors.append(f"a dialog: {dialog.message}"))
    opened.on("request", lambda asked: hosts.add(urlparse(asked.url).hostname))
    opened.goto(address)
    expect(opened.locator("#who input")).to_be_visible(timeout=PATIENCE_MS)
    yield opened
    picture(opened, request.node.name)
    opened.close()
    assert not errors
    assert hosts <= {"127.0.0.1", None}


def picture(page: Page, name: str) -> None:
    """Keep how it looks where $MTA_PICTURES says so."""
    if folder := os.environ.get("MTA_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name.replace('[', '-').strip(']')}.png", full_page=True)


def pick(page: Page, name: str) -> None:
    page.locator("#who input").click()
    page.get_by_role("option", name=name).click()
    expect(page.locator("#about")).to_contain_text(name, timeout=PATIENCE_MS)


def test_a_person_is_shown_with_anchors_history_and_map(page: Page) -> None:
    pick(page, "ada")
    expect(page.locator("#about")).to_contain_text("4 items, answered with merged")
    expect(page.locator("#anchors")).to_contain_text("anchor/")
    expect(page.locator("#history")).to_contain_text("rose 3")
    expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
    assert page.locator("#map img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def test_four_ways_answer_side_by_side(page: Page, server: Server) -> None:
    wanted = {way: expected(server, "bob", way) for way in ("base", "rag", "mta-merged", "mta")}
    pick(page, "bob")
    page.locator("#question textarea").fill(ASKED[0]["content"])
    page.locator("#ask").click()
    for way, text in wanted.items():
        expect(page.locator(f"#answer-{way} textarea")).to_have_value(text, timeout=PATIENCE_MS)
    assert len(set(wanted.values())) > 1, "the ways should answer differently here"


def test_adaptation_is_watched_to_its_end(page: Page, server: Server) -> None:
    pick(page, "ada")
    page.locator("#adapt").click()
    expect(page.locator("#told")).to_contain_text("done after", timeout=PATIENCE_MS)
    expect(page.locator("#about")).to_contain_text("answered with adapted", timeout=PATIENCE_MS)
    assert server.store.find_user(server.gate.tenant(None), "ada").revision == 1


def test_why_somebody_is_not_adapted_is_said(page: Page, server: Server) -> None:
    server.store.create_user(server.gate.tenant(None), "blank")
    page.reload()
    pick(page, "blank")
    page.locator("#adapt").click()
    expect(page.locator("#told")).to_contain_text("no training example in the history", timeout=PATIENCE_MS)
    assert not server.store.find_user(server.gate.tenant(None), "blank").revision


def test_somebody_new_is_made_and_chosen(page: Page, server: Server) -> None:
    page.get_by_text("New person, or more history").click()
    page.locator("#name textarea, #name input").first.fill("cy <img src=x onerror=alert(1)>")
    page.locator("#lines textarea").fill('{"input": "garden", "output": "<script>alert(1)</script>"}')
    page.locator("#save").click()
    expect(page.locator("#about")).to_contain_text("1 items", timeout=PATIENCE_MS)
    expect(page.locator("#history")).to_contain_text("<script>alert(1)</script>")
    assert server.store.find_user(server.gate.tenant(None), "cy <img src=x onerror=alert(1)>").items == 1


def test_mistakes_are_told_in_words(page: Page) -> None:
    page.locator("#ask").click()
    expect(page.get_by_text("there is no question; type one")).to_be_visible(timeout=PATIENCE_MS)
    assert page.locator("#answer-base textarea").input_value() == ""


@pytest.mark.parametrize("page", [NARROW], indirect=True, ids=["narrow"])
def test_it_fits_a_narrow_screen(page: Page) -> None:
    pick(page, "ada")
    expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW["width"]


def test_a_server_with_keys_asks_for_one(browser, tmp_path: Path) -> None:
    with running(tmp_path, open_to_all=False) as server, listening(server, playground=True) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#key input")).to_be_visible(timeout=PATIENCE_MS)
        page.locator("#question textarea").fill("garden")
        page.locator("#ask").click()
        expect(page.get_by_text("no API key")).to_be_visible(timeout=PATIENCE_MS)
        assert page.locator("#answer-base textarea").input_value() == ""
        page.close()
