"""The app in a real browser: slider, sets and texts change what is shown, and nothing is asked of a network."""

from __future__ import annotations

import re
import socket

import pytest

pytest.importorskip("gradio", reason="the app needs Gradio, which is in an environment of its own: make app")

from app_models import LAYERS, POSITIONS, save_model
from browsers import browser  # noqa: F401 - a fixture
from hf_layerdrop.app.model import load_app_model
from hf_layerdrop.app.page import build_page, launch_app
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import write_recommended
from hf_layerdrop.cli import run
from hf_layerdrop.results.recommended import as_recommended
from report_pages import result

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
CHANGED = "before => document.querySelector('#ld-answer').innerText != before"
KEPT = "boxes => boxes.map(box => box.className + box.textContent)"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Open the pages of a classifier with recommended sets, and of a model that generates."""
    folder = save_model(tmp_path_factory.mktemp("app") / "classifier", "BertForSequenceClassification")
    sets = [as_recommended(result(kept), "given", None) for kept in ((0, 1, 2, 3), (0, 3), (3,))]
    write_recommended(RecommendedSets(depths={"encoder": LAYERS}, metric="accuracy", sets=sets), folder)
    writer = save_model(tmp_path_factory.mktemp("app") / "writer", "BartForConditionalGeneration")
    opened = {name: launch_app(path, wait=False) for name, path in (("classifier", folder), ("writer", writer))}
    yield opened
    import gradio

    gradio.close_all()


@pytest.fixture
def show(browser, addresses):
    """Open a page; afterwards nothing may have been asked of another machine, and nothing may have gone wrong."""
    asked, wrong, contexts = [], [], []

    def open_page(name="classifier", **settings):
        address = addresses[name]
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        context.route(re.compile(rf"^(?!{re.escape(address)}|data:|blob:)"), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append((address, request.url)))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#ld-layers .ld-layers, #ld-answer [role=alert]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert [url for address, url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert wrong == []


def boxes(page):
    return page.locator("#ld-layers .ld-layers i").evaluate_all(KEPT)


def says(page, kept):
    page.wait_for_selector(f'#ld-layers [aria-label$=": {kept}"]')


def test_a_page_opens_with_its_example_answered(show):
    page = show()
    assert page.title() == "classifier at any depth"
    assert boxes(page) == ["kept0", "1", "2", "kept3"]
    assert page.locator("#ld-answer dd").count() == 2
    assert "ms" in page.locator("#ld-cost").inner_text()
    assert page.locator("#ld-table tr[aria-current]").inner_text().split()[:3] == ["2", "0,", "3"]


def test_the_slider_changes_the_layers_and_the_answer_by_keyboard(show):
    page = show()
    before = page.locator("#ld-answer").inner_text()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    says(page, "0, 1, 3")
    page.wait_for_function(CHANGED, arg=before)
    page.keyboard.press("End")
    says(page, "0-3")
    assert page.locator("#ld-table tr[aria-current] td").first.inner_text() == "4"


def test_a_recommended_set_takes_the_place_of_the_slider(show):
    page = show()
    page.get_by_label("Layers", exact=True).click()
    page.get_by_role("option", name=re.compile("^1 layer: 3")).click()
    says(page, "3")
    page.get_by_role("slider").wait_for(state="hidden")
    page.get_by_label("Layers", exact=True).click()
    page.get_by_role("option", name="Evenly spread, by depth").click()
    says(page, "0, 3")
    page.get_by_role("slider").wait_for(state="visible")


def test_a_text_is_answered_and_a_wrong_one_is_one_sentence(show):
    page = show()
    before = page.locator("#ld-answer").inner_text()
    page.get_by_label("Text", exact=True).fill("steel steel steel")
    page.get_by_role("button", name="Run").click()
    page.wait_for_function(CHANGED, arg=before)
    for text, said in (("", "is empty"), ("bridge " * 99, f"positions for {POSITIONS}")):
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_role("button", name="Run").click()
        page.locator("#ld-answer [role=alert]", has_text=said).wait_for()
        assert boxes(page) == []
    assert "Traceback" not in page.content()


def test_text_is_generated_at_a_depth_of_each_stack(show):
    page = show("writer")
    assert page.get_by_role("slider").count() == 3
    page.locator("#ld-answer [role=alert]", has_text="ask for fewer").or_(
        page.locator("#ld-answer .ld-text")
    ).wait_for()
    page.get_by_label("Text", exact=True).fill("the bridge <b>{{value}} ${1 + 1}</b>")
    length = page.get_by_role("spinbutton", name=re.compile("New tokens"))
    length.fill("5")
    length.press("Enter")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("#ld-cost :text('tokens/s')")
    page.wait_for_selector("#ld-cost :text('5 in')")
    length.fill("200")
    length.press("Enter")
    page.locator("#ld-answer [role=alert]", has_text="ask for fewer").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["classifier", "writer"])
def test_on_a_phone_nothing_is_wider_than_the_screen(show, name, scheme):
    page = show(name, **PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    back = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 300) == (scheme == "dark")


def test_two_users_see_their_own_depth(show):
    first, second = show(), show()
    for page, key in ((first, "Home"), (second, "End")):
        page.get_by_role("slider").focus()
        page.keyboard.press(key)
    says(first, "3")
    says(second, "0-3")


def test_one_request_at_a_time_runs_on_the_model(tmp_path):
    page = build_page(load_app_model(str(save_model(tmp_path / "model", "BertForSequenceClassification"))))
    limits = [one.concurrency_limit for one in page.fns.values() if one.queue]
    assert limits == [1]
    assert page.analytics_enabled is False


def test_others_are_not_let_in_and_a_port_in_use_is_one_sentence(addresses, capsys, tmp_path):
    assert all(address.startswith("http://127.0.0.1:") for address in addresses.values())
    port = int(re.search(r":(\d+)", addresses["classifier"])[1])
    folder = save_model(tmp_path / "model", "BertForMaskedLM")
    assert run(["app", str(folder), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
    own = next((found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)), "127.0.0.1")
    if not own.startswith(("127.", "::1")):
        with socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET) as other:
            other.settimeout(5)
            assert other.connect_ex((own, port)) != 0
