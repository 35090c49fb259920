import copy
import itertools
import json
import math
import pickle

import pytest
import yaml
from rich.console import Console

from hf_layerdrop.errors import CheckpointError, LayerDropConfigError
from hf_layerdrop.reports.card import CardInfo, MeasuredOn, render_card
from hf_layerdrop.results.plot import draw_depth_plot, find_evenly_spread
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_parameters, read_results, render_markdown, render_table, write_results


def result(kept, accuracy=0.8, seconds=0.01, **stacks):
    stacks = {"encoder": tuple(kept), **stacks}
    depth = sum(map(len, stacks.values()))
    return SubNetworkResult(stacks, 1_000_000 * depth, {"accuracy": accuracy, "loss": 0.5}, seconds * depth, 3)


ALL_OF_FOUR = [
    result(kept, accuracy=0.5 + 0.1 * depth + 0.01 * number)
    for depth in range(1, 5)
    for number, kept in enumerate(itertools.combinations(range(4), depth))
]
EVEN = [result(kept) for kept in ((3,), (0, 3), (0, 1, 3), (0, 1, 2, 3))]


def text_of(table, width=200):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_has_every_number_of_every_row():
    shown = text_of(render_table([result((0, 3), 0.8125), result((0, 1, 2, 3), 0.9)], title="SST-2"))
    assert "SST-2" in shown
    row = next(line.split() for line in shown.splitlines() if "0, 3" in line)
    assert row == ["2", "0,", "3", "2M", "0.8125", "0.5000", "20.0", "2.00x"]


GLUE_METRICS = [
    ("accuracy", "loss"),
    ("accuracy", "f1", "loss"),
    ("matthews_correlation", "loss"),
    ("pearson", "spearmanr", "loss"),
    ("accuracy", "loss", "accuracy_mm", "loss_mm"),
]


@pytest.mark.parametrize("depth", [6, 24])
@pytest.mark.parametrize("names", GLUE_METRICS, ids="+".join)
def test_kept_layers_and_metrics_keep_their_room_in_eighty_columns(names, depth):
    kept = tuple(range(0, 2 * depth, 2))  # no runs, which are written short
    results = [
        SubNetworkResult({"encoder": kept[:count]}, 10**8, dict.fromkeys(names, 0.1234), 0.1, 1)
        for count in (depth, depth // 2, 1)
    ]
    shown = text_of(render_table(results, title="a title"), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    head = next(line for line in shown.splitlines() if "depth" in line)
    assert all(name in head.split() for name in names if "loss" not in name)
    assert "0, 2, 4, 6, 8" in shown
    assert shown.count("0.1234") >= 3 * sum("loss" not in name for name in names)
    left_out = [name for name in (*names, "ms/batch", "speed-up", "parameters") if name not in head.split()]
    assert ("No room for" in shown) is bool(left_out)
    assert all(name in shown.replace("\n", " ").partition("No room for")[2] for name in left_out)
    wide = text_of(render_table(results), width=200)
    assert "No room" not in wide
    assert all(name in wide for name in names)


def test_in_a_very_narrow_terminal_the_least_columns_go_first():
    head = {}
    for width in (80, 50, 34):
        head[width] = text_of(render_table([result((0, 2, 4, 6, 8, 9))]), width=width)
    assert "loss" in head[80]
    assert "No room for loss, speed-up, ms/batch: " in head[50].replace("\n", " ")
    assert "accuracy" in head[34]
    assert "0, 2, 4" in head[34]


def test_speed_up_compares_with_the_deepest_in_any_order():
    for results in (EVEN, EVEN[::-1]):
        rows = render_markdown(results).splitlines()[2:]
        ups = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip("| ") for row in rows}
        assert ups == {"1": "4.00x", "2": "2.00x", "3": "1.33x", "4": "1.00x"}


def test_columns_that_nothing_fills_are_left_out():
    untimed = [SubNetworkResult({"encoder": (0,)}, 10, {}, None, 1)]
    assert render_markdown(untimed).splitlines()[0] == "| depth | kept layers | parameters |"


def test_a_missing_metric_is_a_dash_and_not_zero():
    other = SubNetworkResult({"encoder": (0,)}, 10, {"f1": 0.0}, None, 1)
    rows = render_markdown([result((0, 3)), other]).splitlines()[2:]
    assert rows[1] == "| 1 | 0 | 10 | - | - | 0.0000 | - | - |"


def test_stacks_are_named_where_there_are_several_and_root_layers_shown():
    row = render_markdown([result((0, 3), decoder=(1,))]).splitlines()[2]
    assert "encoder 0, 3; decoder 1" in row
    rooted = render_markdown([result((0, 3))], root={"encoder": [1, 4, 7, 11]})
    assert "| 0, 3 | 1, 11 |" in rooted


def test_marked_row_is_bold_and_no_other():
    rows = render_markdown(EVEN, marked=1).splitlines()[2:]
    assert ["**" in row for row in rows] == [False, True, False, False]


@pytest.mark.parametrize(
    ("count", "shown"), [(999, "999"), (22_713_216, "22.7M"), (7_000_000_000, "7B"), (1500, "1.5k")]
)
def test_parameters_are_short(count, shown):
    assert format_parameters(count) == shown


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_results_are_read_back_as_they_were(tmp_path, suffix):
    untimed = SubNetworkResult({"encoder": (2,), "decoder": (0, 1)}, 7, {"bleu": 1 / 3}, None, 0)
    results = [*ALL_OF_FOUR, untimed]
    path = write_results(results, tmp_path / "new" / f"sweep.{suffix}")
    assert read_results(path) == results
    assert [path.name for path in path.parent.iterdir()] == [f"sweep.{suffix}"]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_an_undefined_metric_survives_and_the_file_is_valid(tmp_path, suffix):
    path = write_results(
        [SubNetworkResult({"encoder": (0,)}, 1, {"matthews": math.nan}, None, 1)], tmp_path / f"r.{suffix}"
    )
    assert math.isnan(read_results(path)[0].metrics["matthews"])
    if suffix == "json":
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_results(EVEN, tmp_path / "sweep.json")
    before = path.read_bytes()
    unwritable = SubNetworkResult({"encoder": (0,)}, 1, {"accuracy": object()}, None, 1)
    with pytest.raises(TypeError):
        write_results([unwritable], path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "[{}]", "{", '{"a": 1}', "[1]", "null"])
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_other_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"other.{suffix}"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="does not hold results"):
        read_results(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_results(tmp_path / f"missing.{suffix}")


def test_only_json_and_csv(tmp_path):
    with pytest.raises(LayerDropConfigError, match=r"'a\.xlsx'.*\.json or \.csv"):
        write_results(EVEN, tmp_path / "a.xlsx")


def test_evenly_spread_sets_are_found_by_stack():
    assert [found.keep_layers["encoder"] for found in find_evenly_spread(ALL_OF_FOUR)] == [
        (3,),
        (0, 3),
        (0, 1, 3),
        (0, 1, 2, 3),
    ]
    two = [result((0, 3), decoder=(0, 1)), result((0, 1), decoder=(0, 1)), result((0, 1, 2, 3), decoder=(0, 1))]
    assert find_evenly_spread(two) == [two[0], two[2]]


def test_plot_writes_both_files_with_the_values_asked_for(tmp_path):
    paths = draw_depth_plot(
        {"LayerDrop": ALL_OF_FOUR, "control": EVEN}, "accuracy", tmp_path / "new" / "depth", title="T5"
    )
    assert [path.name for path in paths] == ["depth.png", "depth.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    svg = paths[1].read_text()
    for text in ("LayerDrop: evenly spread layers", "LayerDrop: mean", "control: evenly spread", "accuracy", "T5"):
        assert text in svg
    assert "control: mean" not in svg  # one set a depth has no spread to show
    ticks = {text for text in ("1", "2", "3", "4", "1.5", "2.5") if f">{text}</text>" in svg}
    assert ticks == {"1", "2", "3", "4"}


def test_plot_follows_the_records(tmp_path):
    same = [draw_depth_plot({"": EVEN}, "accuracy", tmp_path / name)[1].read_bytes() for name in ("a", "b")]
    assert same[0] == same[1]
    other = draw_depth_plot({"": [*EVEN[:-1], result((0, 1, 2, 3), 0.95)]}, "accuracy", tmp_path / "c")[1].read_bytes()
    assert other != same[0]


def test_plot_leaves_no_global_state(tmp_path):
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    draw_depth_plot({"": EVEN}, "accuracy", tmp_path / "a")
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs


def test_plot_of_an_unknown_metric_names_the_known_ones(tmp_path):
    with pytest.raises(LayerDropConfigError, match=r"'bleu'.*accuracy or loss"):
        draw_depth_plot({"": EVEN}, "bleu", tmp_path / "a")
    assert not list(tmp_path.iterdir())


CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hf_layerdrop": {
        "keep_layers": {"encoder": [0, 3]},
        "root_keep_layers": {"encoder": [1, 11]},
        "trained_with": {"rate": 0.25, "shape": "linear"},
        "strategy": "search",
        "score": 0.875,
    },
}


def metadata_of(card):
    return yaml.safe_load(str(card).split("---")[1])


def test_card_says_what_was_kept_and_how_it_was_trained():
    info = CardInfo("me/small", source="/home/someone/secret/sst2", pipeline_tag="text-classification", served=True)
    text = str(render_card(CONFIG, info, parameters=2_000_000, results=EVEN, plot="depth.png"))
    for expected in (
        "0, 3",
        "1, 11",
        "0.25, linear shape",
        "search (score 0.875)",
        "`sst2`",
        "![Quality against depth](depth.png)",
    ):
        assert expected in text
    assert 'pipeline("text-classification", model="me/small")' in text
    assert "| **2** | **0, 3** |" in text
    assert "fan2020reducing" in text
    assert "someone" not in text
    assert "hf_layerdrop" not in text


def test_model_index_is_the_record_of_this_checkpoint():
    info = CardInfo(
        "me/small", pipeline_tag="text-classification", measured_on=MeasuredOn("nyu-mll/glue", "sst2", "validation")
    )
    results = [result(kept, accuracy) for kept, accuracy in (((0,), 0.5), ((0, 3), 0.75), ((0, 1, 2, 3), 0.9))]
    card = render_card(CONFIG, info, parameters=1, results=results)
    found = card.data.eval_results
    assert {(entry.metric_type, entry.metric_value) for entry in found} == {("accuracy", 0.75), ("loss", 0.5)}
    assert {(entry.task_type, entry.dataset_type, entry.dataset_split) for entry in found} == {
        ("text-classification", "nyu-mll/glue", "validation")
    }
    assert metadata_of(card)["model-index"][0]["name"] == "small"


def test_each_of_the_two_sets_of_mnli_has_its_own_entry_in_the_model_index():
    sets = MeasuredOn("nyu-mll/glue", "mnli", "validation_matched", {"_mm": "validation_mismatched"})
    metrics = {"accuracy": 0.8, "loss": 0.4, "accuracy_mm": 0.75, "loss_mm": 0.5}
    own = SubNetworkResult({"encoder": (0, 3)}, 1, metrics, None, 1)
    card = render_card(CONFIG, CardInfo("small", measured_on=sets), parameters=1, results=[own])
    found = {
        entry["dataset"]["split"]: {metric["type"]: metric["value"] for metric in entry["metrics"]}
        for entry in metadata_of(card)["model-index"][0]["results"]
    }
    assert found == {
        "validation_matched": {"accuracy": 0.8, "loss": 0.4},
        "validation_mismatched": {"accuracy": 0.75, "loss": 0.5},
    }
    assert "nyu-mll/glue mnli validation_matched and validation_mismatched (_mm)" in str(card)


def test_nothing_is_claimed_that_was_not_measured():
    card = render_card(CONFIG, CardInfo("small"), parameters=1, results=[result((0, 1))])
    assert "model-index" not in metadata_of(card)
    bare = str(render_card({"hf_layerdrop": None}, CardInfo("small"), parameters=1))
    assert "Quality against depth" not in bare
    assert "No training with LayerDrop is recorded" in bare


def test_undefined_metrics_stay_out_of_the_metadata():
    undefined = SubNetworkResult({"encoder": (0, 3)}, 1, {"matthews": math.nan, "accuracy": 0.5}, None, 1)
    card = render_card(CONFIG, CardInfo("small"), parameters=1, results=[undefined])
    assert [metric["type"] for metric in metadata_of(card)["model-index"][0]["results"][0]["metrics"]] == ["accuracy"]


def test_a_hub_source_is_the_base_model_and_a_folder_is_not(tmp_path):
    hub = metadata_of(render_card(CONFIG, CardInfo("a", source="google-bert/bert-base-uncased"), parameters=1))
    assert hub["base_model"] == "google-bert/bert-base-uncased"
    assert "base_model" not in metadata_of(render_card(CONFIG, CardInfo("a", source=str(tmp_path)), parameters=1))
    inherited = CardInfo("a", source=str(tmp_path), inherited={"base_model": "roberta-base", "license": "mit"})
    metadata = metadata_of(render_card(CONFIG, inherited, parameters=1))
    assert (metadata["base_model"], metadata["license"]) == ("roberta-base", "mit")


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (0.2, "0.2"),
        ([0.1, 0.2], "one a layer: 0.1, 0.2"),
        ({"encoder": 0.1, "decoder": [0, 0.5]}, "decoder one a layer: 0, 0.5"),
    ],
)
def test_card_shows_every_form_of_rate(rate, shown):
    config = {"hf_layerdrop": {"trained_with": {"rate": rate}}}
    assert shown in str(render_card(config, CardInfo("a"), parameters=1))


def test_a_record_and_all_that_it_holds_is_frozen():
    record, metrics = result((0, 3)), {"accuracy": 0.5}
    with pytest.raises(TypeError, match="frozen record"):
        record.metrics["accuracy"] = 1.0
    with pytest.raises(TypeError, match="frozen record"):
        record.keep_layers.update(encoder=(1,))
    own = SubNetworkResult({"encoder": [0, 3]}, 1, metrics, None, 1)
    metrics["accuracy"] = 1.0
    assert own.metrics == {"accuracy": 0.5}
    assert own.keep_layers == {"encoder": (0, 3)}
    for again in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own), SubNetworkResult.from_dict(own.to_dict())):
        assert again == own
        assert hash(again) == hash(own)
    assert {type(value) for value in own.to_dict().values()} <= {dict, int, type(None)}
    assert len({own, record}) == 2
