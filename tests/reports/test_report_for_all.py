"""The report in themes, by screen readers and in old browsers, and with names that would like to run."""

from __future__ import annotations

import re

import pytest

from browsers import browser, centre, point_of, show  # noqa: F401 - fixtures
from hf_layerdrop.reports.html import _PAGE
from hf_layerdrop.reports.series import LayerScores
from hf_layerdrop.results.record import SubNetworkResult
from report_pages import HOSTILE, selection, write


def test_the_theme_follows_the_system_until_the_reader_chooses(show):
    page = show(color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark theme").wait_for()
    light = page.evaluate(back)
    assert light != dark
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(back) == dark
    page.emulate_media(color_scheme="dark")
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(100)
    assert page.evaluate(back) == dark
    colour = page.evaluate("document.getElementById('depth-chart').layout.font.color")
    assert colour == page.evaluate("cssValue('--quiet')")


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_text_and_lines_stand_out_from_their_background(theme):
    css = (_PAGE / "page.css").read_text(encoding="utf-8")
    block = css.partition(theme)[2].partition("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for back in ("card", "page"):
        for text in ("ink", "quiet", "accent"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for number in range(8):
        assert contrast(colours[f"series-{number}"], colours["card"]) >= 3
    assert contrast(colours["warn"], colours["warn-back"]) >= 4.5


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_everything_that_takes_the_focus_has_a_name(show, tmp_path):
    scores = [LayerScores("Learned drop rates", {"encoder": [0.1, 0.2, None, 0.4]}, unit="rate")]
    page = show(write(tmp_path / "out.html", selections=[selection()], layer_scores=scores))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, summary, [tabindex='0'], [role=img]")]
        .filter(one => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim()
            || [...(one.labels ?? [])].some(label => label.textContent.trim())))
        .map(one => one.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


def test_names_from_outside_do_nothing_in_the_browser(show, tmp_path):
    marked, linked, quotes = HOSTILE
    records = [
        SubNetworkResult({"encoder": (layer,)}, 1, {marked: 0.5, linked: 0.4 + layer}, 0.1, 1) for layer in (0, 1)
    ]
    path = write(
        tmp_path / "out.html",
        {quotes: records[1:], marked: records[1:], linked: records[:1]},
        metric=linked,
        model=marked,
        title=marked,
        layer_scores=[LayerScores(marked, {linked: [0.5], marked: [1]}, unit=linked)],
        depths={"encoder": 2},
    )
    page = show(path)
    assert page.locator("h1").text_content() == marked
    point_of(page, "0", linked).scroll_into_view_if_needed()
    page.mouse.move(*centre(point_of(page, "0", linked)))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "<a href" in page.locator("#depth-chart .hoverlayer").text_content()
    page.get_by_label("Metric").select_option(marked)
    assert page.locator(".chart a, .chart img, main img").count() == 0
    assert page.evaluate("window.pwned") is None


def test_only_the_scripts_that_were_written_run(show, tmp_path):
    path = write(tmp_path / "out.html")
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("<main>", "<main><script>window.pwned = 1</script><img src=x onerror='window.pwned=2'>")
    )
    page = show(path, may_complain=True)
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.locator("html").get_attribute("data-ready") == "yes"


def test_an_old_browser_still_shows_the_numbers(show):
    page = show(prepare="delete window.DecompressionStream")
    assert "2023 or newer" in page.locator(".depth").inner_text()
    assert page.locator("#map tbody tr").count() == 30
    assert "--keep-layers 0,1,2,3 " in page.locator("#details-body").inner_text()
