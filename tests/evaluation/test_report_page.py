from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mta.errors import ConfigError, DataError, StorageError
from mta.evaluation.figures import Chart, Line, Point
from mta.evaluation.plots import best_control, interval_plot, plot_layout
from mta.evaluation.report import card_sections, comparability, join_cards, render_report, write_report
from mta.evaluation.report_files import write_tables

VOID = {"meta", "br", "link", "img", "input", "hr"}


def method(accuracy: float, nll: float | None = None, *, updates: float | None = 0) -> dict[str, Any]:
    metrics = {"accuracy": accuracy, **({} if nll is None else {"nll": nll})}
    return {
        "metrics": metrics,
        "ci95": {name: [value - 0.1, value + 0.1] for name, value in metrics.items()},
        "updates_per_user": updates,
        "adapter_bytes_per_user": None,
        "train_seconds": None,
        "predict_seconds": None,
    }


def run(**more: Any) -> dict[str, Any]:
    return {
        "task": "lamp-2",
        "base": "tiny-random",
        "seeds": [42],
        "people": 37,
        "queries": 153,
        "methods": {
            "base": method(0.1, 3.0),
            "majority": method(0.4),
            "population": method(0.3, 2.2),
            "mta": method(0.5, 1.9, updates=6),
        },
        "comparisons": [
            {
                "a": "mta",
                "b": "population",
                "metric": "accuracy",
                "difference": 0.2,
                "ci95": [0.1, 0.3],
                "p_value": 0.01,
                "people": 37,
                "queries": 153,
            }
        ],
        **more,
    }


def page(**more: Any) -> str:
    parts: dict[str, Any] = {"scores": [run()], "run_card": {"seed": 42}, "cases": []}
    return render_report(**{**parts, **more})


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


def test_page_is_well_formed_and_loads_nothing() -> None:
    html = page(cases=[{"query": "q", "answers": {"mta": "x"}}])
    tags = outline(html).tags
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    assert not re.search(r"https?:|@import|url\(", html)
    for tag, attributes in tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_links_inside_the_page_have_a_target_and_ids_are_unique() -> None:
    compared = run(methods={**run()["methods"], "oppu": method(0.4)})
    html = page(scores=[compared, run(task="lamp-4")], cases=[{"query": "q", "answers": {"mta": "x"}}])
    tags = outline(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert (
        {str(a["href"])[1:] for t, a in tags if t == "a"} == {"tables", "run-1", "run-2", "cases", "card"} <= set(ids)
    )


def test_pictures_are_valid_svg_in_the_colours_of_the_page() -> None:
    pictures = re.findall(r"<svg.*?</svg>", page(), flags=re.DOTALL)
    roots = [ElementTree.fromstring(picture) for picture in pictures]
    plots = [root for root in roots if root.get("class") == "plot"]
    assert len(plots) == 2
    assert len(plots[0].findall(".//circle")) == 4
    assert len(plots[1].findall(".//circle")) == 3  # majority has no NLL
    assert not re.search(r'(fill|stroke)="#', "".join(pictures))


HOSTILE = "<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)> {{ 7 * 7 }}"


def test_text_of_users_is_shown_as_text_everywhere() -> None:
    scores = run(task=HOSTILE, base=HOSTILE)
    scores["methods"][HOSTILE] = method(0.2)
    scores["comparisons"][0]["a"] = HOSTILE
    case = {
        "title": HOSTILE,
        "note": HOSTILE,
        "query": HOSTILE,
        "gold": HOSTILE,
        "answers": {HOSTILE: HOSTILE},
        "history": [HOSTILE],
    }
    html = page(scores=[scores], run_card={HOSTILE: HOSTILE, "more": {HOSTILE: [HOSTILE]}}, cases=[case], title=HOSTILE)
    found = outline(html)
    assert not {"script", "img"} & {tag for tag, _ in found.tags}
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert "".join(found.text).count(HOSTILE) >= 14
    assert "49" not in "".join(found.text)
    for picture in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(picture)


def test_page_says_who_was_scored_and_what_may_be_compared() -> None:
    text = " ".join("".join(outline(page()).text).split())
    assert "Base tiny-random, seed 42: 37 people, 153 queries." in text
    assert "0.500[0.400, 0.600]" in text
    assert "All 4 methods answered the same 153 queries of 37 people" in text
    assert "resamples people" in text


def test_best_point_estimate_is_bold() -> None:
    assert re.findall(r"<b>(.*?)</b>", page()) == ["0.500", "1.900"]


def test_seeds_show_how_far_they_lie_apart() -> None:
    methods = {**run()["methods"], "mta": {**method(0.5, 1.9), "seed_sd": {"accuracy": 0.0625}}}
    html = page(scores=[run(methods=methods)])
    assert html.count('<span class="range">sd ') == html.count('<span class="range">sd 0.062</span>') == 1
    assert "standard deviation between the scores of the seeds" in html
    assert "standard deviation between" not in page()


def test_comparisons_have_a_row_for_each_opponent_and_a_column_for_each_metric() -> None:
    one = {**run()["comparisons"][0], "p_holm": 0.03}
    rows = [one, {**one, "metric": "nll", "difference": -0.3, "ci95": [-0.4, 0.1]}, {**one, "b": "majority"}]
    rows += [{**one, "a": "oppu", "b": "base"}]
    judged = {"method": "mta", "population": "population", "best_rival": {"accuracy": "population", "nll": None}}
    text = " ".join("".join(outline(page(scores=[run(comparisons=rows, judged=judged)])).text).split())
    table = text.split("mta minus …")[1].split("oppu minus …")
    assert table[0].startswith(
        "Acc ↑NLL ↓ population+0.200 [+0.100, +0.300]p 0.010, Holm 0.030best rival: mta better-0.300"
    )
    assert "Holm 0.030may be noise majority+0.200 [+0.100, +0.300]p 0.010, Holm 0.030mta better–" in table[0]
    assert table[1].startswith("Acc ↑ base+0.200")
    assert "metrics are not mixed" in text


def test_comparability_names_controls_present_and_missing() -> None:
    text = " ".join(comparability(run()))
    assert "Controls in the table: base, majority, population." in text
    assert "Not run: swapped-user" in text
    assert "Not run: population" not in text
    assert "population differs from base by +0.200, mta by +0.400" in text
    assert "One seed" in text
    assert "tend to be too narrow" not in text


def test_comparability_warns_of_few_people_unequal_effort_and_no_controls() -> None:
    methods = {"mta": method(0.5, updates=6), "oppu": method(0.4, updates=60), "rag-1": method(0.3, updates=None)}
    text = " ".join(comparability(run(people=12, seeds=[1, 2], methods=methods)))
    assert "no controls" in text
    assert "Not run: population" in text
    assert "took 6 to 60 updates per user" in text
    assert "not recorded for every method" in text
    assert "12 people are few" in text
    assert "Answers of 2 seeds are pooled" in text


def test_cases_mark_right_answers_and_show_empty_ones() -> None:
    html = page(cases=[{"query": "q", "gold": "Drama", "answers": {"base": "", "mta": " Drama ", "rag-1": "drama"}}])
    assert html.count("same as the true answer") == 1
    assert "(empty)" in html
    assert "true answer</p>" not in page(cases=[{"query": "q", "answers": {"base": ""}}])


def test_run_card_sections() -> None:
    card = {
        "seed": 42,
        "config": {"train": {"lr": 0.001, "train_a": True}, "targets": ["q", "v"]},
        "caps": None,
        "empty": {},
    }
    assert card_sections(card) == [
        ("Run", [("seed", "42"), ("caps", "not recorded")]),
        ("config", [("train › lr", "0.001"), ("train › train_a", "yes"), ("targets", "q, v")]),
    ]
    assert "Run card" not in page(run_card={})


def test_cards_of_several_runs_say_once_what_they_share() -> None:
    one = {"people": 3, "settings": {"lr": 0.1, "train": {"rank": 2, "seed": 1}}, "versions": {"torch": "2"}}
    two = {"people": 4, "settings": {"lr": 0.1, "train": {"rank": 2, "seed": 2}}, "versions": {"torch": "2"}}
    assert join_cards({"a": one, "b": two, "c": {**two, "cap": 5}}) == {
        "The same in all": {"settings": {"lr": 0.1, "train": {"rank": 2}}, "versions": {"torch": "2"}},
        "a": {"people": 3, "settings": {"train": {"seed": 1}}},
        "b": {"people": 4, "settings": {"train": {"seed": 2}}},
        "c": {"people": 4, "settings": {"train": {"seed": 2}}, "cap": 5},
    }
    assert join_cards({"a": one}) == {"a": one}
    assert join_cards({"a": one, "old": {}}) == {"The same in all": {}, "a": one, "old": {}}


def test_half_characters_do_not_stop_the_report(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, scores=[run()], run_card={}, cases=[{"query": "cut \ud83d", "answers": {"mta": "😀"}}])
    text = path.read_text(encoding="utf-8")
    assert "cut �" in text
    assert "😀" in text
    odd = {**run(), "base": "half \ud83d"}
    write_tables(tmp_path / "tables", scores=[odd])
    assert "half �" in (tmp_path / "tables" / "lamp-2.md").read_text(encoding="utf-8")


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scores"):
        page(scores=[])
    with pytest.raises(DataError, match=r"not the content of a scores\.json"):
        page(scores=[{"task": "lamp-2"}])
    with pytest.raises(DataError, match=r"case 2 cannot be shown: wanted 'query' and 'answers'.*got question"):
        page(cases=[{"query": "q", "answers": {}}, {"question": "q"}])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report(tmp_path / "file" / "report.html", scores=[run()], run_card={})


def test_layout_keeps_everything_inside_and_in_proportion() -> None:
    layout = plot_layout(run(), "accuracy")
    places = [x for row in layout.rows for x in (row.low, row.x, row.high) if x is not None]
    assert layout.left <= min(places) <= max(places) <= layout.right
    assert all(layout.left <= x <= layout.right for x, _ in layout.ticks)
    base, majority, population, mta = (row.x for row in layout.rows)
    assert (mta - base) == pytest.approx(2 * (population - base), abs=0.05)
    assert base < population < majority < mta
    for x, text in layout.ticks:
        expected = base + (float(text) - 0.1) / 0.4 * (mta - base)
        assert x == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0], [1e6, 3e6], [-4.0, 1e-9], [0.41, 0.4100001]])
def test_layout_of_odd_values_has_distinct_ticks(values: list[float]) -> None:
    methods = {
        f"method number {index} with a long name": {"metrics": {"mae": value}} for index, value in enumerate(values)
    }
    layout = plot_layout(run(methods=methods, comparisons=[]), "mae")
    places = [x for x, _ in layout.ticks]
    assert len(places) >= 2
    assert places == sorted(set(places))
    assert all(layout.left <= row.x <= layout.right for row in layout.rows)
    assert all(len(row.short) <= 24 and row.short.endswith("…") for row in layout.rows)


def test_best_control_is_by_direction_and_leaves_methods_out() -> None:
    assert best_control(run(), "accuracy") == "majority"
    assert best_control(run(), "nll") == "population"
    assert best_control(run(methods={"mta": method(0.5)}), "accuracy") is None


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.PDF", b"%PDF")])
def test_interval_plot_writes_the_kind_its_name_says(tmp_path: Path, name: str, start: bytes) -> None:
    scores = run()
    scores["methods"]["costs $5 and $6_"] = method(0.2)
    interval_plot(tmp_path / name, scores, "accuracy", title="a $ sign")
    assert (tmp_path / name).read_bytes().startswith(start)


def test_interval_plot_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose a name that ends in \.png, \.svg, \.pdf"):
        interval_plot(tmp_path / "p.bmp", run(), "accuracy")
    with pytest.raises(DataError, match="no method has a value for 'rouge_1'; the scores hold: accuracy, nll"):
        interval_plot(tmp_path / "p.png", run(), "rouge_1")
    assert list(tmp_path.iterdir()) == []


# tables and figures of the paper ------------------------------------------------------------------------------------


def test_page_shows_the_papers_tables_beside_the_run() -> None:
    html = page(scores=[run(methods={**run()["methods"], "oppu": method(0.4)}), run(task="own")])
    outline(html)
    text = re.sub(r"<[^>]+>", " ", html)
    assert "no number of a run can be held against one of them" in text
    assert re.findall(r"Table (\d)\.", text) == ["1"], "of table 2 only one column was run, of 3 and 4 nothing is known"
    row = re.search(r'<tr><th scope="row">lamp-2 Acc ↑</th>(.*?)</tr>', html, re.DOTALL)
    assert row is not None
    assert '<b>0.500</b><span class="paper">0.444</span>' in row[1]
    assert "Table 4." not in page(scores=[run(task="own")]), "the paper has five tasks"


def test_page_draws_every_point_of_every_figure() -> None:
    chart = Chart(
        name="k", heading="Figure 4. Merged anchors K", title="lamp-2", caption="Acc ↑", x_title="K", y_title="Acc ↑",
        lines=(Line(name="mta", points=(Point(1, 0.2, 0.1, 0.3), Point(2, 0.4, 0.3, 0.5))),),
        reference=Line(name="by similarity", points=(Point(0, 0.35),), colour=1),
    )  # fmt: skip
    html = page(charts=[chart, replace(chart, heading="Figure 3. Weight")])
    outline(html)
    assert html.index("Figure 3. Weight") < html.index("Figure 4. Merged"), "in the order of the paper"
    assert html.count("<title>mta, 2: 0.400 [0.300, 0.500]</title>") == 2
    assert html.count("by similarity, 0: 0.350") >= 2
    assert 'id="figures"' not in page()


def test_a_case_without_its_question_shows_the_answers() -> None:
    html = page(cases=[{"query": None, "answers": {"mta": "comedy"}, "gold": "comedy"}])
    assert '<p class="label">Query</p>' not in html
    assert "comedy" in html
