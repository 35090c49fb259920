"""What a table says is shown in one sentence of bounded length, and its stacks in one order."""

import json

import pytest

from hf_layerdrop import CheckpointError, KeepLayersError, parse_keep_layers, read_recommended
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.results.recommended import as_results, recommended_markdown
from tables import one_set

LONGEST = 1000  # characters of a sentence


def test_a_table_of_a_thousand_stacks_is_refused_shortly(tmp_path):
    stacks = [f"{'x' * 190}{number}" for number in range(1000)]
    one = {"keep_layers": {stack: [0] for stack in stacks}, "parameters": 1, "metrics": {"accuracy": 1.0}}
    content = {"version": 1, "depths": dict.fromkeys(stacks, 1), "metric": "accuracy", "sets": [one]}
    (tmp_path / "layerdrop.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="depths") as refusal:
        parse_keep_layers("best:1", {"encoder": 4}, recommended=tmp_path)
    assert len(str(refusal.value)) < LONGEST + len(str(tmp_path))


def test_of_many_measured_depths_a_few_are_named():
    depths = {"encoder": 20, "decoder": 20}
    pairs = [(one, other) for one in range(2, 21) for other in range(2, 21)]
    sets = [one_set({"encoder": list(range(one)), "decoder": list(range(other))}, 0.5) for one, other in pairs]
    table = RecommendedSets(depths=depths, metric="accuracy", sets=sets)
    with pytest.raises(KeepLayersError, match="or 349 others") as refusal:
        parse_keep_layers("best:1", depths, recommended=table)
    assert len(str(refusal.value)) < LONGEST


def test_stacks_are_shown_in_the_order_of_the_model_whatever_the_file_has(tmp_path):
    sets = [
        {"keep_layers": {"encoder": [0, 2], "decoder": [1]}, "metrics": {"f1": 0.1}, "chosen_by": "beam"},
        {"keep_layers": {"decoder": [0, 2], "encoder": [1]}, "metrics": {"f1": 0.2}, "chosen_by": "greedy"},
    ]
    content = {"version": 1, "depths": {"encoder": 4, "decoder": 4}, "metric": "f1"}
    content["sets"] = [{**one, "parameters": 5} for one in sets]
    (tmp_path / "layerdrop.json").write_text(json.dumps(content))
    table = read_recommended(tmp_path)
    assert [[*result.keep_layers] for result in as_results(table)] == [["encoder", "decoder"]] * 2
    rows = recommended_markdown(table).splitlines()[2:]
    assert ["2 + 1" in rows[0], "beam" in rows[0], "1 + 2" in rows[1], "greedy" in rows[1]] == [True] * 4
