"""The report in a real browser: charts, map and details show the same sub-networks, by mouse, keyboard and touch."""

from __future__ import annotations

import itertools
import re
from statistics import fmean

import pytest

from browsers import browser, centre, point_of, points_of, show, traces  # noqa: F401 - fixtures
from hf_layerdrop.reports.series import LayerScores, Series
from report_pages import DEPTH, TWO, all_sets, result, selection, write


def test_every_record_is_drawn_in_both_charts_and_the_map(show):
    page = show()
    assert page.locator("html").get_attribute("data-ready") == "yes"
    assert points_of(page).count() == points_of(page, "latency").count() == 30
    assert page.locator("#map tbody tr").count() == 30
    assert page.locator("#map tbody tr >> nth=0").locator(".kept").count() == DEPTH
    assert page.title() == "sst2: quality against depth"


def test_the_map_shows_the_layers_that_are_kept(show):
    page = show()
    row = page.locator('#map tr:has(button[aria-label="Keeps 1, 3, LayerDrop"])')
    boxes = row.locator(".strip i").evaluate_all("boxes => boxes.map(box => box.className)")
    assert boxes == ["", "kept", "", "kept"]
    assert row.locator("td").all_text_contents()[1:] == ["2", "0.7700", "2M", "23.0", "●LayerDrop"]


def test_lines_are_means_and_bands_reach_from_worst_to_best(show, tmp_path):
    shifts = (0.0, 0.03, -0.02)
    series = [Series("spread", [result(range(n), s) for n in (1, 2, 3, 4)], seed=i) for i, s in enumerate(shifts)]
    page = show(write(tmp_path / "seeds.html", series))
    line = next(trace for trace in traces(page) if trace["name"] == "spread: mean")
    band = next(trace for trace in traces(page) if trace["name"] == "spread: band")
    plain = [result(range(n)).metrics["accuracy"] for n in (1, 2, 3, 4)]
    assert line["x"] == [1, 2, 3, 4]
    assert line["y"] == pytest.approx([value + fmean(shifts) for value in plain])
    assert band["y"] == pytest.approx([value + 0.03 for value in plain] + [value - 0.02 for value in plain[::-1]])


def test_one_record_a_depth_has_no_band(show, tmp_path):
    page = show(write(tmp_path / "one.html", {"a": [result(range(n)) for n in (1, 2, 3, 4)]}))
    assert not [trace for trace in traces(page) if trace["fill"]]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_pareto_front_is_what_nothing_beats(show, tmp_path, metric):
    sign = 1 if metric == "accuracy" else -1
    page = show(write(tmp_path / "out.html", metric=metric))
    records = [record for results in TWO.values() for record in results]
    coordinates = {(1000 * record.seconds_per_batch, record.metrics[metric]) for record in records}
    front = {
        (ms, value)
        for ms, value in coordinates
        if not any((m <= ms and sign * v > sign * value) or (m < ms and v == value) for m, v in coordinates)
    }
    line = next(trace for trace in traces(page, "latency") if trace["name"] == "Pareto front")
    assert sorted(zip(line["x"], line["y"], strict=True)) == sorted(front)
    assert 1 < len(front) < len(coordinates)


def test_hovering_shows_a_sub_network_and_leaving_shows_the_chosen_one_again(show):
    page = show()
    chosen = page.locator("#details-body").inner_text()
    page.mouse.move(*centre(point_of(page, "0, 2")))
    page.wait_for_selector('#details-body :text("--keep-layers 0,2 ")')
    assert "keep_layers=[0, 2])" in page.locator("#details-body").inner_text()
    assert page.locator(".hoverlayer .hovertext").count() == 1
    page.mouse.move(5, 5)
    page.wait_for_selector('#details-body :text("--keep-layers 0,1,2,3 ")')
    assert page.locator("#details-body").inner_text() == chosen


def test_a_click_keeps_a_sub_network_in_every_view(show):
    page = show()
    point_of(page, "1, 2", chart="latency").scroll_into_view_if_needed()
    page.mouse.click(*centre(point_of(page, "1, 2", chart="latency")))
    page.mouse.move(5, 5)
    page.wait_for_timeout(100)
    assert "--keep-layers 1,2 " in page.locator("#details-body").inner_text()
    for chart in ("depth", "latency"):
        assert point_of(page, "1, 2", chart=chart).get_attribute("aria-pressed") == "true"
        assert "current" in point_of(page, "1, 2", chart=chart).get_attribute("class")
    assert page.locator("#map tr.current button").get_attribute("title") == "1, 2"
    page.locator('#map button[aria-label="Keeps 0, 3, without"]').click()
    assert "--keep-layers 0,3 " in page.locator("#details-body").inner_text()
    assert point_of(page, "1, 2").get_attribute("aria-pressed") == "false"


def test_switching_a_series_off_and_on_changes_every_view(show):
    page = show()
    box = page.get_by_role("checkbox", name="without")
    box.uncheck()
    assert points_of(page).count() == points_of(page, "latency").count() == 15
    assert point_of(page, "0, 1", "without").count() == 0
    assert page.locator("#map tbody tr").count() == 15
    assert not [trace for trace in traces(page) if trace["name"] == "without: mean"]
    box.focus()
    page.keyboard.press("Space")
    assert points_of(page).count() == 30
    page.get_by_role("checkbox", name="LayerDrop").uncheck()
    box.uncheck()
    assert points_of(page).count() == page.locator("#map tbody tr").count() == 0


def test_switching_the_metric_changes_values_and_direction(show):
    page = show()
    page.get_by_label("Metric").select_option("loss")
    line = next(trace for trace in traces(page) if trace["name"] == "LayerDrop: mean")
    assert line["y"][-1] == pytest.approx(0.04)
    assert "loss (lower is better)" in page.locator("#depth-chart").text_content()
    tile = page.locator(".tile", has_text="Shallowest within")
    assert "0.0400" in tile.inner_text()


def test_tiles_lead_to_their_sub_network(show):
    page = show()
    tile = page.locator(".tile", has_text="Half the layers")
    best = max((record for record in all_sets() if record.depth == 2), key=lambda record: record.metrics["accuracy"])
    assert f"{best.metrics['accuracy']:.4f}" in tile.inner_text()
    tile.click()
    kept = ",".join(map(str, best.keep_layers["encoder"]))
    assert f"--keep-layers {kept} " in page.locator("#details-body").inner_text()


@pytest.mark.parametrize("clipboard", [True, False])
def test_the_copy_buttons_copy(show, clipboard):
    without = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    page = show(prepare=None if clipboard else without, permissions=["clipboard-read", "clipboard-write"])
    page.locator('#map button[aria-label="Keeps 0, 3, LayerDrop"]').click()
    page.get_by_role("button", name="Copy: Command").click()
    page.wait_for_selector('#said:text("Copied")', state="attached")
    area = "document.body.append(Object.assign(document.createElement('textarea'), {id: 'pasted'}))"
    page.evaluate(area)
    page.locator("#pasted").focus()
    page.keyboard.press("Control+V")
    command = "hf-layerdrop prune runs/sst2 --keep-layers 0,3 --output sst2-2-layers"
    assert page.locator("#pasted").input_value() == command


def test_all_of_it_works_by_keyboard(show):
    page = show()
    page.get_by_role("checkbox", name="without").uncheck()
    page.get_by_role("button", name=re.compile("^Fastest")).focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("LayerDrop, 4 of 4 layers: 0-3.")  # one stop a chart, the chosen one
    page.keyboard.press("Home")
    assert page.evaluate(focused).startswith("LayerDrop, 1 of 4 layers: 0.")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith("LayerDrop, 1 of 4 layers: 1.")
    assert "--keep-layers 1, " in page.locator("#details-body").inner_text()
    page.keyboard.press("Tab")
    assert "--keep-layers 1, " in page.locator("#details-body").inner_text()
    assert page.evaluate("document.activeElement.textContent") == "Copy"
    page.keyboard.press("Escape")
    assert "Point at a sub-network" in page.locator("#details-body").inner_text()


@pytest.mark.parametrize("slowness", [1, 10])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_tap_chooses(show, tmp_path, slowness):
    long = "a_strategy_with_a_rather_long_name_" * 3
    series = {"LayerDrop": all_sets(), long: all_sets(-0.05)}
    path = write(tmp_path / "out.html", series, model="/folder/of/some/" + "length" * 20, selections=[selection()])
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    page = show(path, **phone)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    point = point_of(page, "0, 2")
    point.scroll_into_view_if_needed()
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slowness})
    page.touchscreen.tap(*centre(point))
    page.wait_for_selector('#details-body :text("--keep-layers 0,2 ")')
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_layer_scores_are_drawn_and_listed(show, tmp_path):
    scores = [LayerScores("Learned drop rates", {"encoder": [0.1, 0.2, None, 0.4]}, unit="rate")]
    page = show(write(tmp_path / "out.html", layer_scores=scores))
    assert page.evaluate("document.getElementById('scores-0').data[0].y") == [0.1, 0.2, None, 0.4]
    assert page.locator("#scores-0 .bars .point").count() >= 3
    page.locator("summary").click()
    assert page.locator("#score-charts td").all_text_contents() == ["0.1000", "0.2000", "-", "0.4000"]
    assert show(write(tmp_path / "none.html")).locator("#scores").is_hidden()


def test_many_sub_networks_are_listed_on_demand_and_sorted_by_any_column(show, tmp_path):
    sets = [kept for size in range(1, 7) for kept in itertools.combinations(range(6), size)]
    page = show(write(tmp_path / "out.html", {"all": [result(kept) for kept in sets]}))
    assert page.locator("#map tbody tr").count() == 40
    page.get_by_role("button", name="Show all 63").click()
    assert page.locator("#map tbody tr").count() == 63
    page.get_by_role("button", name="ms a batch").click()
    page.get_by_role("button", name="ms a batch").click()
    assert page.locator("#map th[aria-sort=ascending]").inner_text() == "ms a batch ↑"
    column = [float(text) for text in page.locator("#map tbody td:nth-child(5)").all_text_contents()]
    assert column == sorted(column)
    assert len(set(column)) > 5


def test_the_numbers_can_be_saved(show):
    page = show()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename == "sst2.csv"
    saved = download.value.path()
    assert len(saved.read_text().splitlines()) == 31
