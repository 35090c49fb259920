"""Lists of results: their views, and that they are lists like any other."""

import math

import pytest

from conftest import batch_for, build
from hf_layerdrop import SubNetworkResult, SubNetworkResults, evaluate_depths
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.results.table import format_kept, render_markdown


def result(kept, parameters=1000, seconds=0.002, **metrics):
    return SubNetworkResult(kept, parameters, metrics or {"accuracy": 0.5, "loss": 1.5}, seconds, 4)


ONE = SubNetworkResults([result({"encoder": (0, 1, 2, 3)}), result({"encoder": (0, 3)}, 500, accuracy=0.25)])
TWO = SubNetworkResults([result({"encoder": (0, 1, 2), "decoder": (0,)}), result({"encoder": (0,), "decoder": (0, 1)})])


def test_evaluate_depths_returns_one():
    model, batch = build("BertForSequenceClassification"), batch_for("BertForSequenceClassification")
    found = evaluate_depths(model, [{**batch, "labels": batch["input_ids"][:, 0] % 2}], depths=[4, 2], progress=False)
    assert isinstance(found, SubNetworkResults)
    assert found.to_pandas()["keep_layers"].tolist() == ["0,1,2,3", "0,3"]
    assert "<td>0, 3</td>" in found._repr_html_()


def test_it_is_a_list_and_a_part_of_it_has_the_views_too():
    assert list(ONE) == [ONE[0], ONE[1]]
    assert [*ONE] == ONE
    assert isinstance(ONE[0], SubNetworkResult)
    assert isinstance(ONE[:1], SubNetworkResults)
    assert ONE[-1:] == [ONE[1]]


def test_a_frame_has_flat_columns():
    frame = ONE.to_pandas()
    flat = ["depth", "keep_layers", "parameters", "accuracy", "loss", "seconds_per_batch", "layer_forwards"]
    assert list(frame.columns) == flat
    assert frame["depth"].tolist() == [4, 2]
    assert frame["accuracy"].tolist() == [0.5, 0.25]
    assert math.isnan(frame["loss"][1])
    two = TWO.to_pandas()
    assert two["keep_layers_encoder"].tolist() == ["0,1,2", "0,"]
    assert two["keep_layers_decoder"].tolist() == ["0,", "0,1"]
    assert SubNetworkResults().to_pandas().empty


def test_a_notebook_shows_the_table_and_nothing_that_a_name_says_is_html():
    shown = SubNetworkResults([result({"encoder": (0, 1)}, **{"<b>": 0.5})])._repr_html_()
    assert shown.count("<tr>") == 2
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    assert "No results" in SubNetworkResults()._repr_html_()


def test_a_plot_is_a_figure_of_the_first_metric_or_of_the_one_that_is_named():
    axes = ONE.plot().axes[0]
    assert axes.get_ylabel() == "accuracy"
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.25, 0.5]]
    assert ONE.plot("loss", title="Loss").axes[0].get_title(loc="left") == "Loss"
    with pytest.raises(LayerDropConfigError, match="choose accuracy or loss"):
        ONE.plot("f1")
    with pytest.raises(LayerDropConfigError, match="no result has a metric"):
        SubNetworkResults([SubNetworkResult({"encoder": (0,)}, 1, {}, None, 1)]).plot()


@pytest.mark.parametrize(
    ("layers", "written"),
    [
        ((0, 2, 5), "0, 2, 5"),
        ((0, 1), "0, 1"),
        ((0, 1, 2), "0-2"),
        ((0, 1, 2, 3, 4, 6, 7, 8, 9, 11), "0-4, 6-9, 11"),
        ((3,), "3"),
    ],
)
def test_runs_of_layers_are_written_short(layers, written):
    assert format_kept({"encoder": layers}) == written


def test_the_depth_of_two_stacks_is_that_of_each():
    assert [row.split("|")[1:3] for row in render_markdown(TWO).splitlines()[2:]] == [
        [" 3 + 1 ", " encoder 0-2; decoder 0 "],
        [" 1 + 2 ", " encoder 0; decoder 0, 1 "],
    ]
