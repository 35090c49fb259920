"""A browser that may ask no network, and what it shows of a report."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from report_pages import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no Chromium here: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open a report; afterwards nothing may have been asked of a network, and nothing may have gone wrong."""
    asked, wrong, contexts = [], [], []

    def open_report(path=None, *, may_complain=False, prepare=None, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        context.route(re.compile(r"^(?!file:|data:|blob:)"), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        if not may_complain:
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
        if prepare:
            page.add_init_script(prepare)
        page.goto(Path(path or write(tmp_path / "out.html")).as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert wrong == []


def points_of(page, chart="depth"):
    return page.locator(f"#{chart}-chart path.point")


def point_of(page, kept, series="LayerDrop", chart="depth"):
    start, end = json.dumps(f"{series}, "), json.dumps(f": {kept}. ")
    return page.locator(f"#{chart}-chart path.point[aria-label^={start}][aria-label*={end}]")


def traces(page, chart="depth"):
    script = (
        "chart => document.getElementById(chart).data.map(({name, x, y, fill, mode}) => ({name, x, y, fill, mode}))"
    )
    return page.evaluate(script, f"{chart}-chart")


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
