"""The HTML report: one file that needs no network, with every record and the lines that load it."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from classifiers import model, rows  # noqa: F401 - fixtures
from conftest import batch_for, build, output_of
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropConfigError, LayerDropError, OutputExistsError
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.reports.series import LayerScores, Series, learned_rates
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import read_results, render_markdown
from hf_layerdrop.search.selection import Selection
from report_pages import DEPTH, HOSTILE, TWO, all_sets, result, selection, write


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
