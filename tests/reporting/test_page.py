"""The HTML report in headless Chromium: what it asks of the network, and how it fits a phone and a desktop."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import Page, page

from edgeslim.reporting.report import write_report

_CONTRAST = """(() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = css => { const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = element => { for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour } return 'rgb(255, 255, 255)' };
  return [...document.querySelectorAll('p, td, th, b, small, dt, dd, span, svg text')].map(e => {
    const style = getComputedStyle(e), ink = e.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) }).reduce((x, y) => Math.min(x, y))
})()"""
_SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg.plot text')].map(e =>
  parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))"""


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with page() as found:
        yield found


@pytest.fixture
def report(profiles: list[dict[str, Any]], tmp_path: Path) -> Path:
    write_report([*profiles, {**profiles[0], "bundle": "a <b> & a very long name " * 4}], tmp_path / "report.html")
    return tmp_path / "report.html"


def test_the_report_asks_for_nothing_but_itself(browser_page: Page, report: Path) -> None:
    browser_page.requests.clear()
    browser_page.log.clear()
    browser_page.open(report.as_uri())
    assert [url for url in browser_page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert browser_page.log == []


@contextmanager
def _counting_server() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server on loopback, and the paths that it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_reports_policy_keeps_even_a_planted_request_from_the_network(browser_page: Page, report: Path) -> None:
    with _counting_server() as (address, asked):
        planted = report.read_text().replace("</body>", f'<img src="{address}/planted.png"></body>')
        without_policy = re.sub(r"<meta http-equiv=[^>]*>", "", planted)
        assert without_policy != planted
        report.write_text(planted)
        browser_page.open(report.as_uri())
        assert asked == []
        report.write_text(without_policy)
        browser_page.open(report.as_uri())
        assert asked == ["/planted.png"] and f"{address}/planted.png" in browser_page.requests


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_scrolls_sideways_and_plots_stay_readable(browser_page: Page, report: Path, width: int) -> None:
    browser_page.size(width, 844, phone=width < 600)
    browser_page.open(report.as_uri())
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    assert browser_page.evaluate(_SMALLEST_TEXT) >= 9.0  # CSS pixels; below that a phone's reader has to zoom


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(browser_page: Page, report: Path, dark: bool) -> None:
    browser_page.size(1280, 900, dark=dark)
    browser_page.open(report.as_uri())
    assert browser_page.evaluate(_CONTRAST) >= 4.5  # WCAG 2.2, level AA
    ground = browser_page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground != "rgb(255, 255, 255)") is dark


def test_estimates_are_marked_and_share_no_chart_or_table_with_measured_figures(
    browser_page: Page, report: Path
) -> None:
    browser_page.open(report.as_uri())
    texts = browser_page.evaluate("['measured', 'estimated'].map(id => document.getElementById(id).innerText)")
    assert "jetson-orin-nano" not in texts[0] and "not measured" in texts[0]
    assert "Some Processor" not in texts[1] and "Nothing in this section was measured" in texts[1]
    tags = "[...document.querySelectorAll('#estimated tbody tr')].every(row => row.innerText.includes('estimated'))"
    assert (
        browser_page.evaluate(tags) and browser_page.evaluate("document.querySelectorAll('#estimated tr').length") > 1
    )


def test_names_are_shown_as_they_are_not_as_markup(browser_page: Page, report: Path) -> None:
    browser_page.open(report.as_uri())
    assert "a <b> & a very long name" in browser_page.evaluate("document.getElementById('measured').innerText")


def test_the_page_shows_plots_bars_and_operators(browser_page: Page, report: Path) -> None:
    browser_page.open(report.as_uri())
    captions = browser_page.evaluate("[...document.querySelectorAll('#measured figcaption')].map(e => e.innerText)")
    for expected in ("Latency over weights", "Latency over perplexity", "load", "first token", "prefill", "decode"):
        assert any(caption.startswith(expected) for caption in captions), expected
    marks = "document.querySelectorAll('#measured figure:first-child svg.plot g').length"
    assert browser_page.evaluate(marks) == 6
    assert "edgeslim.PackedLinear × 169" in browser_page.evaluate("document.body.innerText")
