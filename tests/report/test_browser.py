"""The page in a browser: sorting, filtering, themes, telephones, print; and that nothing runs or leaves it.

One Chromium for all tests of this file, which needs the package `playwright` and a Chromium on the machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradmm.errors import printable
from gradmm.report.html import write_report
from run_folders import HOSTILE, HOSTILE_LABELS, TEXTS, make_comparison_run, make_texts_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    runs = {
        "open": make_texts_run(place / "open"),
        "hostile": make_texts_run(place / "hostile", hostile=True),
        "private": make_texts_run(place / "private", private=True),
        "compared": make_comparison_run(place / "compared"),
    }
    found = {name: write_report([run]) for name, run in runs.items()}
    return found | {"all": write_report(list(runs.values()), place / "all.html")}


class Seen:
    """A page that is open, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()

    def close(self) -> None:
        """It said nothing and asked for nothing but itself."""
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if url != self.own and not url.startswith("data:")] == []

    def column(self, number: int) -> list[str]:
        cells = self.page.locator(f".texts tbody tr:not([hidden]) td:nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]


@pytest.fixture
def seen(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    opened: list[Seen] = []

    def look(name: str, **options: Any) -> Seen:
        opened.append(Seen(browser, pages[name], **options))
        return opened[-1]

    yield look
    for one in opened:
        one.close()


def test_columns_sort_by_value_up_and_down(seen: Any) -> None:
    page = seen("open").page
    open_ = page.locator(".texts thead th")
    names = [text.strip().split("\n")[0] for text in open_.all_inner_texts()]
    at = names.index("log-perplexity")
    button = open_.nth(at).locator("button")

    def values() -> list[float]:
        cells = page.locator(f".texts tbody td:nth-child({at + 1})")
        return [float(text) for text in cells.all_inner_texts()]

    button.focus()
    page.keyboard.press("Enter")
    assert open_.nth(at).get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    page.keyboard.press("Space")
    assert open_.nth(at).get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    open_.nth(names.index("text")).locator("button").click()
    assert page.locator("[aria-sort]").count() == 1  # of the other no more
    texts = page.locator(".texts tbody .text").all_inner_texts()
    assert texts == sorted(texts, key=str.lower)


def test_what_has_no_value_comes_last_either_way(seen: Any) -> None:
    found = seen("open")
    head = found.page.locator(".texts thead th", has_text="label score")
    for _ in range(2):
        head.locator("button").click()
        scores = found.column(6)
        assert scores[-2:] == ["\N{EN DASH}"] * 2
        assert "\N{EN DASH}" not in scores[:-2]


def test_texts_are_found_by_words_and_class(seen: Any) -> None:
    found = seen("open")
    page = found.page
    page.locator(".search").fill("FILM")
    assert sorted(found.column(3)) == ["A dull film.", "A warm film."]
    page.locator("select.class").select_option(label="positive")
    assert found.column(3) == ["A warm film."]
    assert page.locator(".count").inner_text() == "1 of 6 texts"
    page.locator(".search").fill("no such words")
    assert found.column(3) == []
    assert page.locator(".empty").is_visible()
    page.locator(".search").fill("")
    assert found.column(3) == list(TEXTS[1])


def test_hostile_rows_are_text_and_nothing_runs(seen: Any) -> None:
    found = seen("hostile")
    page = found.page
    assert page.title() == "hostile · gradmm report"
    shown = page.locator(".texts tbody .text").all_text_contents()
    assert shown == [printable(text) for text in HOSTILE]
    assert page.locator(".texts img, .texts h1, .texts script, .texts b, main script, main img").count() == 0
    page.locator("select.class").select_option(label=printable(HOSTILE_LABELS[1]))
    for button in page.locator(".texts thead button").all():
        button.click()
    page.locator(".search").fill("<")
    for row in page.locator(".texts tbody tr:not([hidden])").all():
        row.hover()


def test_the_policy_stops_what_would_get_in(browser: Any, pages: dict[str, Path]) -> None:
    found = Seen(browser, pages["open"])
    put_in = "<img src='http://example.invalid/x.png' onerror='document.title=1'><p style='color:red'>x</p>"
    found.page.evaluate("html => document.querySelector('main').insertAdjacentHTML('beforeend', html)", put_in)
    found.page.wait_for_timeout(300)
    assert found.page.title() == "open · gradmm report"
    assert len(found.said) >= 2
    assert all("Content Security Policy" in message for message in found.said)
    found.context.close()


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(seen: Any) -> None:
    def ground(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3])

    page = seen("open", color_scheme="dark").page
    button = page.locator("button.theme")
    assert ground(page) < 200 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert ground(page) > 600 and button.get_attribute("aria-pressed") == "false"
    page.reload()
    assert ground(page) > 600  # as chosen
    assert ground(seen("open", color_scheme="light").page) > 600  # another visitor


def test_a_page_works_where_nothing_may_be_remembered(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused') }})")
    page.goto(pages["open"].as_uri())
    page.locator("button.theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator(".texts thead button").first.click()
    context.close()
    assert errors == []


@pytest.mark.parametrize("name", ["open", "hostile", "private", "compared", "all"])
def test_a_page_fits_a_telephone(seen: Any, name: str) -> None:
    page = seen(name, viewport={"width": 360, "height": 740}).page
    assert page.evaluate(TOO_WIDE) <= 0
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true }")
    assert page.evaluate(TOO_WIDE) <= 0
    # What is wider than the page scrolls within its own box.
    outside = "[...document.querySelectorAll('table')].filter(one => !one.closest('.scroll')).length"
    assert page.evaluate(outside) == 0


def test_texts_are_there_without_script(seen: Any) -> None:
    found = seen("open", java_script_enabled=False)
    assert found.column(3) == [text for own in TEXTS for text in own]
    assert not found.page.locator(".controls").is_visible()
    assert not found.page.locator("button.theme").is_visible()
    assert found.page.locator(".texts thead button").count() == 0


def test_the_keyboard_reaches_the_content_first(seen: Any) -> None:
    page = seen("open").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_links_of_the_contents_lead_to_their_sections(seen: Any) -> None:
    page = seen("all").page
    links = page.locator("nav a")
    assert links.count() > 20
    links.last.click()
    target = page.evaluate("decodeURIComponent(location.hash.slice(1))")
    assert page.locator(f"#{target}").evaluate("one => one.getBoundingClientRect().top") < 700


def test_a_print_is_light_whole_and_without_controls(seen: Any) -> None:
    page = seen("open", color_scheme="dark").page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator(".controls").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll.tall')).overflowY") == "visible"
    assert page.pdf().startswith(b"%PDF-")


def test_charts_are_pictures_with_names(seen: Any) -> None:
    page = seen("open").page
    charts = page.get_by_role("img")
    assert charts.count() >= 5
    for chart in charts.all():
        assert chart.locator("> title").text_content()
        box = chart.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 100
