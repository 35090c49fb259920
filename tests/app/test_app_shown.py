"""What the page shows as HTML: answer, layers, cost and table, escaped, and one sentence for whatever goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from app_models import LAYERS, SHOWN, app_folder, save_model  # noqa: F401 - a fixture
from hf_layerdrop.app import drawing
from hf_layerdrop.app.heads import Found
from hf_layerdrop.app.measured import Measured, find_measured
from hf_layerdrop.app.model import Answer, load_app_model
from hf_layerdrop.app.shown import BY_DEPTH, answer_as_html
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import write_recommended
from hf_layerdrop.results.recommended import as_recommended
from hf_layerdrop.results.table import RESULTS_FILE, write_results
from report_pages import result

CLASSIFIER = "BertForSequenceClassification"
HOSTILE = "<img src=x onerror=alert(1)>\"'"
SETS = [result(kept) for kept in ((0, 1, 2, 3), (0, 3), (1, 2), (3,))]


@pytest.fixture
def app(app_folder):
    return load_app_model(str(app_folder(CLASSIFIER)))


@pytest.fixture
def measured_app(tmp_path):
    folder = save_model(tmp_path / "measured", CLASSIFIER)
    sets = [as_recommended(one, "given", None) for one in SETS]
    write_recommended(RecommendedSets(depths={"encoder": LAYERS}, metric="accuracy", sets=sets), folder)
    return load_app_model(str(folder))


def boxes(html):
    return re.findall(r"<i( class=kept)?>(\d+)</i>", html)


def test_the_logic_needs_no_gradio():
    code = "import sys, hf_layerdrop.app.shown, hf_layerdrop.app.page; sys.exit('gradio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # in this one, tests of the page may have imported it


def test_a_depth_shows_its_answer_its_layers_and_its_cost(app):
    shown = {
        depth: answer_as_html(app, SHOWN[CLASSIFIER], BY_DEPTH, {"encoder": depth}, 1) for depth in range(1, LAYERS + 1)
    }
    assert len({answer for answer, *_ in shown.values()}) == LAYERS
    answer, layers, cost, table = shown[2]
    assert len(re.findall(r"<dt>LABEL_\d</dt><dd>0\.\d{3}</dd>", answer)) == 2
    assert [(bool(kept), int(layer)) for kept, layer in boxes(layers)] == [(True, 0), (False, 1), (False, 2), (True, 3)]
    assert 'aria-label="encoder: 2 of 4 layers run: 0, 3"' in layers
    assert re.search(r"\d+\.\d ms.*whole model \d+\.\d ms", cost)
    assert f"{app.answer(SHOWN[CLASSIFIER], 2).parameters / app.parameters:.0%} of" in cost
    assert "hf-layerdrop sweep" in table


def test_recommended_sets_are_chosen_by_their_number_and_marked_in_the_table(measured_app):
    assert [set_ for set_, _ in measured_app.measured.choices] == [
        "4 layers: 0-3 (accuracy 0.9600)",
        "2 layers: 0, 3 (accuracy 0.7600)",
        "1 layer: 3 (accuracy 0.6900)",
    ]
    for place, kept in enumerate([(0, 1, 2, 3), (0, 3), (3,)]):
        _, layers, _, table = answer_as_html(measured_app, SHOWN[CLASSIFIER], place, {"encoder": 3}, 1)
        assert tuple(int(layer) for on, layer in boxes(layers) if on) == kept
        rows = re.findall(r"<tr( aria-current=\"true\")?><td>", table)
        assert [bool(mark) for mark in rows] == [number == place for number in range(3)]
    *_, table = answer_as_html(measured_app, SHOWN[CLASSIFIER], BY_DEPTH, {"encoder": 3}, 1)
    assert "aria-current" not in table
    assert table.count("<tr>") == 4


def test_the_records_of_a_sweep_are_a_table_too(tmp_path):
    write_results([*SETS, result((0, 7))], tmp_path / RESULTS_FILE)
    found = find_measured(str(tmp_path), None, {"encoder": LAYERS})
    assert [dict(one.keep_layers) for one in found.results] == [dict(one.keep_layers) for one in SETS]
    assert found.choices == []


@pytest.mark.parametrize(
    "content", ["{", json.dumps({"version": 1, "depths": {"encoder": 9}, "metric": "m", "sets": []})]
)
def test_a_table_that_cannot_be_used_is_said_and_no_reason_to_stop(tmp_path, content):
    (tmp_path / "layerdrop.json").write_text(content)
    found = find_measured(str(tmp_path), None, {"encoder": LAYERS})
    assert not found.results
    assert "cannot be used" in drawing.draw_measured(found, {})


def test_a_table_of_another_model_is_not_shown(tmp_path):
    sets = [as_recommended(one, "given", None) for one in SETS]
    write_recommended(RecommendedSets(depths={"encoder": LAYERS}, metric="accuracy", sets=sets), tmp_path)
    assert "belong to another checkpoint" in find_measured(str(tmp_path), None, {"encoder": 6}).note


def test_what_is_wrong_is_one_sentence_and_no_traceback(app, caplog):
    for texts, depth in ((["", ""], 2), (["bridge " * 99, ""], 2), (SHOWN[CLASSIFIER], 9)):
        answer, layers, cost, _ = answer_as_html(app, texts, BY_DEPTH, {"encoder": depth}, 1)
        assert answer.startswith('<p class="ld-error" role="alert">')
        assert (layers, cost) == ("", "")
        assert "Traceback" not in answer
    assert not caplog.records
    app._tools.model.forward = lambda **_: 1 / 0
    answer, *_ = answer_as_html(app, SHOWN[CLASSIFIER], BY_DEPTH, {"encoder": 2}, 1)
    assert "The model cannot answer this (ZeroDivisionError: division by zero)" in answer
    assert caplog.records[0].exc_info  # for whoever started the page


def test_nothing_that_is_said_becomes_markup():
    rows = Answer({"encoder": (0,)}, Found(((HOSTILE, 0.5),)), 1, 1.0, 2.0, 1, 0.1)
    text = Answer({"encoder": (0,)}, Found(text=HOSTILE, new_tokens=3), 1, 1.0, 2.0, 1, 0.1)
    drawn = [
        drawing.draw_answer(rows),
        drawing.draw_answer(text),
        drawing.draw_error(HOSTILE),
        drawing.draw_title("Title", HOSTILE),
        drawing.draw_layers({HOSTILE: (0,)}, {HOSTILE: 1}),
        drawing.draw_measured(Measured(note=HOSTILE), {}),
    ]
    for html in drawn:
        assert "<img" not in html
        assert "&lt;img" in html
    assert "3 in 0.10 s" in drawing.draw_cost(text, 1)
    assert "30.0 tokens/s" in drawing.draw_cost(text, 1)
