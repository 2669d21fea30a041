"""A page of the dashboard in a headless Chromium, driven as a person would."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinklens.app.dashboard.serve import make_server


class Screen:
    """A page with what went wrong on it, and patience: it waits for a state of the page, never for a time."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self._foreign(request.url))

    def _foreign(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:", "about:")):
            self.problems.append(f"request to {url}")

    def open(self, query: str = "") -> None:
        self.page.goto(self.address + query)
        self.until("document.querySelector('#grid .main-svg, #pair .main-svg') && document.querySelector('#run-value')")

    def until(self, condition: str, seconds: float = 90.0) -> None:
        """Wait until a JavaScript expression is true (evaluated outside of the page's security policy)."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"() => Boolean({condition})"):
            assert time.monotonic() < end, f"never became true: {condition}; problems: {self.problems}"
            self.page.wait_for_timeout(30)

    def value(self, expression: str) -> Any:
        return self.page.evaluate(f"() => ({expression})")

    def says(self, selector: str, text: str) -> None:
        self.until(f"document.querySelector({selector!r}).textContent.includes({text!r})")

    def click_cell(self, graph: str, column: int, row: int) -> None:
        """Click the middle of a heatmap's cell."""
        self.value(f"document.querySelector('#{graph}').scrollIntoView({{block: 'center'}})")
        # the event goes through Plotly's own hit test, as a person's click does
        place = self.value(
            f"(() => {{ const plot = document.querySelector('#{graph} .js-plotly-plot');"
            "const layout = plot._fullLayout, box = plot.getBoundingClientRect();"
            f"return [box.left + layout.xaxis._offset + layout.xaxis.d2p({column}),"
            f"box.top + layout.yaxis._offset + layout.yaxis.d2p({row})]; }})()"
        )
        self.page.mouse.move(place[0] - 3, place[1] - 3)
        self.page.mouse.move(*place)
        self.page.wait_for_timeout(150)  # Plotly finds the point under the pointer a moment after it moved
        self.page.mouse.click(*place)

    def choose(self, name: str, text: str) -> None:
        """Choose an option of a dropdown."""
        self.page.click(f"#{name}")
        self.page.locator(".dash-dropdown-option", has_text=text).first.click()
        if self.page.locator(".dash-dropdown-option").count():
            self.page.keyboard.press("Escape")


def served(app: Any) -> Iterator[str]:
    """The address at which an app is served meanwhile."""
    server = make_server(app)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/"
    server.shutdown()
    thread.join(10)


def opened(chrome: Any, address: str, folder: Path, request: pytest.FixtureRequest, **options: Any) -> Iterator[Screen]:
    """A fresh page, closed afterwards; nothing may have gone wrong on it."""
    context = chrome.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
    screen = Screen(context.new_page(), address)
    failed = request.session.testsfailed
    try:
        yield screen
        assert screen.problems == []
    finally:
        if request.session.testsfailed > failed or screen.problems:  # kept by pytest with the last runs' folders
            picture = folder / "failed.png"
            screen.page.screenshot(path=picture, full_page=True)
            print(f"screenshot: {picture}; problems: {screen.problems}")
        context.close()
