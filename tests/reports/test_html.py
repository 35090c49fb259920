"""The HTML report: one file that needs no network, tried in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from urllib.parse import unquote

import pytest
import torch

from classifiers import bart, model, rows  # noqa: F401 - fixtures
from conftest import batch_for, build, output_of
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropConfigError, LayerDropError, OutputExistsError
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.reports.html import _PAGE, write_report
from hf_layerdrop.reports.series import LayerScores, Series, learned_rates
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import read_results, render_markdown
from hf_layerdrop.search.selection import Neighbour, Scored, Selection

DEPTH = 4
HOSTILE = (
    '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">',
    "<a href=\"javascript:window.pwned=3\">click</a> <b>bold</b> %{x} ${'`'}",
    "'\"&amp;\u2028\n--><!--",
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def result(kept, shift=0.0, **stacks):
    stacks = {"encoder": tuple(kept), **stacks}
    depth = sum(map(len, stacks.values()))
    quality = 0.5 + 0.1 * depth + 0.01 * kept[0] + 0.02 * kept[-1] + shift
    seconds = 0.01 * depth + 0.001 * kept[-1]
    return SubNetworkResult(stacks, 1_000_000 * depth, {"accuracy": quality, "loss": 1 - quality}, seconds, depth)


def all_sets(shift=0.0):
    return [result(kept, shift) for size in range(1, 5) for kept in itertools.combinations(range(DEPTH), size)]


def selection(**changes):
    values = {
        "keep_layers": {"encoder": (0, 3)},
        "depths": {"encoder": DEPTH},
        "strategy": "beam",
        "metric": "accuracy",
        "greater_is_better": True,
        "score": 0.75,
        "test_score": 0.71,
        "whole_score": 0.9,
        "whole_test_score": 0.88,
        "split": "half of the rows",
        "parameters": 2_000_000,
        "size_mb": 8.0,
        "latency_ms": 12.0,
        "evaluations": 5,
        "from_journal": 0,
        "layer_forwards": 9,
        "layer_forwards_alone": 12,
        "extra_layer_forwards": 4,
        "shared": True,
        "sub_networks": 6,
        "share_as_good": 0.25,
        "share_is_exact": False,
        "share_samples": 3,
        "runner_ups": (Scored({"encoder": (1, 3)}, 0.74), Scored({"encoder": (0, 1)}, 0.6)),
        "outside": (Neighbour({"encoder": (0, 1, 3)}, 0.8, 3_000_000, 12.0, 18.0),),
        "importances": {"encoder": (0.9, 0.1, 0.2, 0.8)},
        "warnings": ("It may be overfitted.",),
    }
    return Selection(**{**values, **changes})


TWO = {"LayerDrop": all_sets(), "without": all_sets(-0.05)}


def write(path, series=TWO, **changes):
    settings = {"metric": "accuracy", "model": "runs/sst2", "overwrite": True}
    return write_report(path, series, **{**settings, **changes})


class Elements(HTMLParser):
    """What a parser finds in a page: every element with its attributes, and the text of the data."""

    def __init__(self, text):
        super().__init__()
        self.found, self._inside, self.texts = [], None, {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.found.append((tag, attributes))
        self._inside = attributes.get("id")

    def handle_data(self, data):
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def handle_endtag(self, tag):
        self._inside = None


def data_of(path):
    return json.loads(Elements(path.read_text(encoding="utf-8")).texts["report-data"])


def numbers_of(path):
    """Return what is behind the links to the numbers, by suffix."""
    links = [values for tag, values in Elements(path.read_text(encoding="utf-8")).found if "download" in values]
    return {
        Path(link["download"]).suffix: base64.b64decode(unquote(link["href"]).partition("base64,")[2]) for link in links
    }


# The file


def test_one_file_that_refers_to_nothing_outside_and_appears_whole(tmp_path):
    path = write(tmp_path / "new" / "out.html")
    assert [file.name for file in path.parent.iterdir()] == ["out.html"]
    assert path.stat().st_size < 5_000_000
    for tag, attributes in Elements(path.read_text(encoding="utf-8")).found:
        for name in ("src", "href", "srcset", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in path.read_text(encoding="utf-8")


def test_the_same_records_give_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.html").read_bytes() == write(tmp_path / "b.html").read_bytes()
    assert write(tmp_path / "a.html").read_bytes() != write(tmp_path / "b.html", {"one": all_sets()}).read_bytes()


def test_every_record_is_a_point_with_its_numbers(tmp_path):
    data = data_of(write(tmp_path / "out.html"))
    assert len(data["points"]) == 30
    for point, record in zip(data["points"], [*TWO["LayerDrop"], *TWO["without"]], strict=True):
        assert point["keep"] == {"encoder": list(record.keep_layers["encoder"])}
        assert point["metrics"] == record.metrics
        assert point["ms"] == pytest.approx(1000 * record.seconds_per_batch)
        assert point["parameters"] == record.parameters
    assert data["depths"] == {"encoder": DEPTH}
    assert data["metrics"] == [
        {"name": "accuracy", "greaterIsBetter": True},
        {"name": "loss", "greaterIsBetter": False},
    ]


def test_a_selection_gives_points_of_every_kind(tmp_path):
    data = data_of(write(tmp_path / "out.html", {}, selections=[selection(), selection()]))
    first = data["points"][:5]
    assert [point["role"] for point in first] == ["chosen", "whole", "runner-up", "runner-up", "outside"]
    assert [point["metrics"]["accuracy"] for point in first] == [0.75, 0.9, 0.74, 0.6, 0.8]
    assert [point["ms"] for point in first] == [12.0, None, None, None, 18.0]
    assert len(data["points"]) == 5  # what both selections say is said once
    assert data["layerScores"][0]["values"] == {"encoder": [0.9, 0.1, 0.2, 0.8]}
    text = " ".join(write(tmp_path / "out.html", {}, selections=[selection()]).read_text(encoding="utf-8").split())
    assert "It may be overfitted." in text
    assert "0.7100 (whole model 0.8800); half of the rows" in text


def test_latency_of_one_input_does_not_stand_beside_times_of_a_batch(tmp_path):
    data = data_of(write(tmp_path / "out.html", {"sweep": all_sets()}, selections=[selection()]))
    assert data["time"] == "ms a batch"
    assert all((point["ms"] is None) == (point["series"] == "beam") for point in data["points"])
    assert data_of(write(tmp_path / "out.html", {}, selections=[selection()]))["time"] == "ms a forward"


def test_a_score_whose_direction_was_given_keeps_it(tmp_path):
    chosen = selection(metric="regret", greater_is_better=False)
    data = data_of(write(tmp_path / "out.html", {}, metric="regret", selections=[chosen]))
    assert data["metrics"] == [{"name": "regret", "greaterIsBetter": False}]


def test_names_from_outside_stay_text(tmp_path):
    marked, newline, quotes = HOSTILE
    records = [SubNetworkResult({marked: (0,)}, 1, {newline: 0.5}, 0.1, 1)]
    chosen = selection(strategy=quotes, split=marked, metric=newline, warnings=(marked,))
    path = write(
        tmp_path / "out.html",
        [Series(marked, records, model=quotes)],
        metric=newline,
        model=marked,
        title=marked,
        measured_on=marked,
        selections=[chosen],
        layer_scores=[LayerScores(marked, {marked: [0.1]}, unit=newline)],
    )
    harmless = Elements(write(tmp_path / "other.html", {}, selections=[selection()]).read_text(encoding="utf-8"))
    page = Elements(path.read_text(encoding="utf-8"))
    for tag in ("script", "img", "a", "b"):
        assert [name for name, _ in page.found].count(tag) == [name for name, _ in harmless.found].count(tag)
    assert not [values for _, values in page.found if any(name.startswith("on") for name in values)]
    data = data_of(path)
    assert data["points"][0]["series"] == marked
    assert data["metric"] == newline
    assert data["depths"][marked] == 1
    names = [values["download"] for _, values in page.found if "download" in values]
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_an_undefined_metric_and_a_missing_time_are_null(tmp_path):
    records = [SubNetworkResult({"encoder": (0, 1)}, 5, {"accuracy": float("nan"), "loss": 0.5}, None, 1)]
    point = data_of(write(tmp_path / "out.html", {"a": records}))["points"][0]
    assert point["metrics"] == {"accuracy": None, "loss": 0.5}
    assert point["ms"] is None


def test_the_same_numbers_as_json_csv_and_markdown(tmp_path):
    series = [Series("spread", all_sets(), seed=1), Series("spread", all_sets(0.01), seed=2)]
    numbers = numbers_of(write(tmp_path / "out.html", series, selections=[selection()]))
    records = [*series[0].results, *series[1].results]

    found = json.loads(numbers[".json"])
    assert [SubNetworkResult.from_dict(entry) for run in found["series"] for entry in run["results"]] == records
    assert [run["seed"] for run in found["series"]] == [1, 2]
    assert Selection.from_dict(found["selections"][0]) == selection()

    (tmp_path / "numbers.csv").write_bytes(numbers[".csv"])
    read = read_results(tmp_path / "numbers.csv")
    assert read[:-1] == records
    assert read[-1].metrics == {"accuracy": 0.75}
    lines = list(csv.DictReader(io.StringIO(numbers[".csv"].decode())))
    assert [(line["series"], line["seed"]) for line in (lines[0], lines[15], lines[30])] == [
        ("spread", "1"),
        ("spread", "2"),
        ("beam", ""),
    ]
    text = numbers[".md"].decode()
    assert render_markdown(series[1].results) in text
    assert text.splitlines()[0] == "# sst2"


def test_learned_rates_come_from_the_config_where_they_fit():
    config = {"hf_layerdrop": {"learned_rates": {"encoder": [0.1, 0.3], "decoder": [0.5]}}}
    assert learned_rates(config, {"encoder": 2, "decoder": 2}) == [
        LayerScores("Learned drop rates", {"encoder": [0.1, 0.3]}, unit="rate")
    ]
    for other in ({}, {"hf_layerdrop": None}, {"hf_layerdrop": {"learned_rates": {"encoder": ["<b>", 1]}}}):
        assert learned_rates(other, {"encoder": 2}) == []


# The lines to copy


def test_the_lines_of_a_point_load_its_layers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = "a model's"
    build("BertForSequenceClassification").save_pretrained(folder)
    path = write("out.html", model=folder, model_class="AutoLayerDropModelForSequenceClassification")
    point = next(point for point in data_of(path)["points"] if point["keep"] == {"encoder": [1, 3]})
    expected = build("BertForSequenceClassification")
    prune_layers(expected, [1, 3])
    batch = batch_for("BertForSequenceClassification")

    names: dict[str, object] = {}
    exec(point["python"], names)
    found = output_of(names["model"].eval(), batch)
    torch.testing.assert_close(found, output_of(expected, batch))
    assert not torch.allclose(found, output_of(build("BertForSequenceClassification"), batch), atol=1e-3)

    program, *arguments = shlex.split(point["command"])
    assert program == "hf-layerdrop"
    assert run([*arguments, "--no-tokenizer"]) == 0
    written = json.loads((tmp_path / "a model's-2-layers" / "config.json").read_text())
    assert written["hf_layerdrop"]["keep_layers"] == {"encoder": [1, 3]}


def test_lines_name_stacks_revision_and_the_series_own_model(tmp_path):
    records = [result((0, 2), decoder=(1,))]
    series = [Series("own", records, model="other/model"), Series("all", records)]
    own, shared = data_of(write(tmp_path / "out.html", series, model="me/mt", revision="v1.0"))["points"]
    assert shlex.split(shared["command"])[1:] == [
        *("prune", "me/mt", "--keep-layers", "encoder=0,2;decoder=1,"),
        *("--output", "mt-3-layers", "--revision", "v1.0"),
    ]
    assert shared["python"].endswith("('me/mt', keep_layers={'encoder': [0, 2], 'decoder': [1]}, revision='v1.0')")
    assert "other/model" in own["command"]
    assert "v1.0" not in own["command"] + own["python"]


# What is refused


def test_wrong_input_is_refused_and_writes_nothing(tmp_path, monkeypatch):
    with pytest.raises(LayerDropConfigError, match=r"'f1'.*accuracy or loss"):
        write(tmp_path / "out.html", metric="f1")
    with pytest.raises(LayerDropConfigError, match="nothing to report"):
        write(tmp_path / "out.html", {})
    with pytest.raises(LayerDropConfigError, match=r"'out\.pdf'.*\.html"):
        write(tmp_path / "out.pdf")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        write(tmp_path / "folder.html")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(LayerDropError, match=r'plotly.*pip install "hf-layerdrop\[reports\]"'):
        write(tmp_path / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_report_is_not_replaced_unasked_nor_by_half_of_one(tmp_path):
    path = write(tmp_path / "out.html")
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists"):
        write(path, overwrite=False)
    unwritable = SubNetworkResult({"encoder": (0,)}, 1, {"accuracy": object()}, None, 1)
    with pytest.raises(TypeError):
        write(path, {"a": [unwritable]})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# The command line


def test_sweep_and_search_write_a_report(model, rows, tmp_path, capsys):
    data = ["--validation-file", str(rows), "--text-columns", "sentence"]
    swept, searched = tmp_path / "sweep.html", tmp_path / "new" / "search.html"
    sweep = ["sweep", str(model), *data, "--output", str(tmp_path / "out"), "--report", str(swept)]
    assert run(sweep) == 0
    assert f"Wrote {swept}" in capsys.readouterr().out
    points = data_of(swept)["points"]
    records = read_results(tmp_path / "out" / "depth_results.json")
    assert [point["metrics"] for point in points] == [record.metrics for record in records]
    assert "AutoLayerDropModelForSequenceClassification.from_pretrained" in points[0]["python"]

    target = ["--depth", "2", "--output", str(tmp_path / "selection.json"), "--report", str(searched)]
    assert run(["search", str(model), *data, "--label-column", "label", "--batch-size", "5", *target]) == 0
    chosen = Selection.from_dict(json.loads((tmp_path / "selection.json").read_text()))
    first = data_of(searched)["points"][0]
    assert first["keep"] == {"encoder": list(chosen.keep_layers["encoder"])}
    assert first["metrics"] == {chosen.metric: chosen.score}


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(model, rows, tmp_path, capsys):
    data = ["--validation-file", str(rows), "--text-columns", "sentence"]
    out = ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "a.pdf")]
    for command in (["sweep"], ["search", "--depth", "2", "--label-column", "label"]):
        assert run([*command, str(model), *data, *out]) == 2
        assert ".html" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [rows]


# In a browser


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


def test_layer_scores_are_drawn_and_listed(show, tmp_path):
    scores = [LayerScores("Learned drop rates", {"encoder": [0.1, 0.2, None, 0.4]}, unit="rate")]
    page = show(write(tmp_path / "out.html", layer_scores=scores))
    assert page.evaluate("document.getElementById('scores-0').data[0].y") == [0.1, 0.2, None, 0.4]
    assert page.locator("#scores-0 .bars .point").count() >= 3
    page.locator("summary").click()
    assert page.locator("#score-charts td").all_text_contents() == ["0.1000", "0.2000", "-", "0.4000"]
    assert show(write(tmp_path / "none.html")).locator("#scores").is_hidden()


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
