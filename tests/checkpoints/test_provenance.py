"""What a config says of LayerDrop is read where it is needed, and refused by one sentence where it is not ours."""

from __future__ import annotations

import copy
import json

import pytest
from transformers import BertConfig, BertForSequenceClassification

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop import (
    LayerDropBertForSequenceClassification,
    LayerDropConfig,
    inject_layerdrop,
    prune_layers,
    remove_layerdrop,
    save_pruned,
    sub_network,
)
from hf_layerdrop.checkpoints.provenance import own_provenance, root_layers, saved_provenance
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError
from hf_layerdrop.reports.card import MeasuredOn

DAMAGED = [
    ("mine", "is 'mine' and not a dict"),
    ([0.1], "not a dict"),
    ({"rates": 5, "trained_with": 7}, "rates = 5"),
    ({"rates": {"encoder": "0.1"}}, "rates"),
    ({"rates": {"encoder": [0.1, 2.0, 0.1, 0.1]}}, "2.0 should be less than or equal to 1"),
    ({"rates": {"encoder": [0.1, True, 0.1, 0.1]}}, "rates"),
    ({"rates": {"encoder": [float("nan")] * 4}}, "rates"),
    ({"trained_with": 7}, "trained_with = 7"),
    ({"trained_with": {"rate": "much"}}, "'much' should be a valid number"),
    ({"trained_with": {"rate": {"encoder": None}}}, "trained_with"),
    ({"trained_with": {"rate": 0.1, "sampler": 3}}, "trained_with"),
    ({"keep_layers": [0, 1]}, "[0, 1] should be a valid dictionary"),
    ({"keep_layers": {"encoder": [-1]}}, "keep_layers"),
    ({"keep_layers": {"encoder": [1, 0]}}, "in order"),
    ({"root_keep_layers": {"encoder": [0]}}, "1 layers of the encoder in root_keep_layers, but the model has 4"),
    ({"measured_on": "sst2"}, "measured_on = 'sst2'"),
    ({"measured_on": {"dataset": 3}}, "3 should be a valid string"),
    ({"distilled_with": {"temperature": "hot"}}, "distilled_with"),
    ({"source": 3}, "source = 3"),
    ({"score": "good"}, "score = 'good'"),
    ({"seed": -1}, "seed = -1"),
    ({"seed": True}, "seed = True"),
    ({"use_cache_before": 1}, "use_cache_before = 1"),
    ({"score": "1.5"}, "score = '1.5'"),
    ({"keep_heads": {"encoder": [[0, -1]]}}, "-1 should be greater"),
]
ENTRIES = [entry for entry, _ in DAMAGED]


def damaged_copy(folder, to, entry):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "hf_layerdrop": entry}))
    return to


def tiny():
    shape = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **shape))


@pytest.mark.parametrize(("entry", "said"), DAMAGED)
def test_a_damaged_entry_is_refused_by_one_sentence(entry, said):
    with pytest.raises(CheckpointError, match="delete this entry from config") as caught:
        root_layers(saved_provenance({"hf_layerdrop": entry}), {"encoder": 4})
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("entry", ENTRIES)
def test_nothing_is_cut_with_a_damaged_entry(entry):
    damaged = tiny()
    damaged.config.hf_layerdrop = copy.deepcopy(entry)
    before, training = damaged.config.to_json_string(), {type(module) for module in damaged.modules()}
    with pytest.raises(CheckpointError, match="hf_layerdrop"):
        prune_layers(damaged, 2)
    with pytest.raises(CheckpointError, match="hf_layerdrop"), sub_network(damaged, 2):
        pass
    assert damaged.config.to_json_string() == before
    assert {type(module) for module in damaged.modules()} == training
    assert len(damaged.bert.encoder.layer) == 4


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "root_keep_layers" not in entry])
def test_layerdrop_that_is_asked_for_replaces_a_damaged_entry(entry, caplog):
    damaged = tiny()
    damaged.config.hf_layerdrop = copy.deepcopy(entry)
    inject_layerdrop(damaged, 0.2)
    assert "It is written anew." in caplog.text
    assert saved_provenance(damaged.config)["rates"] == {"encoder": [0.2] * 4}
    remove_layerdrop(damaged)
    assert str(damaged.config.hf_layerdrop) == str(entry)


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_checkpoint_with_a_damaged_entry_is_loaded_or_saved(entry, model, tmp_path):
    folder = damaged_copy(model, tmp_path / "damaged", entry)
    with pytest.raises(CheckpointError, match="hf_layerdrop"):
        LayerDropBertForSequenceClassification.from_pretrained(folder, keep_layers=2)
    with pytest.raises(CheckpointError, match="hf_layerdrop"):
        save_pruned(folder, tmp_path / "small", keep_layers=2)
    assert not (tmp_path / "small").exists()
    if "root_keep_layers" not in entry:
        with pytest.raises(CheckpointError, match="hf_layerdrop"):
            LayerDropBertForSequenceClassification.from_pretrained(folder)


DATA = ["--task", "sst2", "--validation-file", "ROWS"]
COMMANDS = {
    "prune": ["prune", "MODEL", "--keep-layers", "2", "--output", "OUT"],
    "push": ["push", "MODEL", "--keep-layers", "2", "--repo-id", "me/small"],
    "sweep": ["sweep", "MODEL", *DATA, "--output", "OUT"],
    "search": ["search", "MODEL", "--depth", "2", *DATA, "--output", "OUT/found.json"],
    "train": ["train", "--model", "MODEL", "--train-file", "ROWS", *DATA],
    "distill": ["distill", "MODEL", "--train-file", "ROWS", *DATA, "--output", "OUT"],
}
CASES = [(name, ENTRIES[0]) for name in COMMANDS] + [("prune", entry) for entry in ENTRIES[1:]]


@pytest.mark.parametrize(("command", "entry"), CASES)
def test_commands_refuse_it_and_write_nothing(command, entry, model, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = damaged_copy(model, tmp_path / "damaged", entry)
    before = sorted(tmp_path.rglob("*"))
    places = {"MODEL": str(folder), "OUT": str(tmp_path / "out"), "ROWS": str(rows)}
    words = [places.get(word, word.replace("OUT", places["OUT"])) for word in COMMANDS[command]]
    capsys.readouterr()
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "hf_layerdrop" in err
    assert "delete this entry" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("entry", ENTRIES)
def test_inspect_tells_of_it_and_shows_the_rest(entry, model, tmp_path, capsys):
    folder = damaged_copy(model, tmp_path / "damaged", entry)
    assert run(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stacks"][0]["depth"] == 4
    (trap,) = [trap for trap in facts["traps"] if trap["name"] == "damaged entry"]
    assert "delete this entry" in trap["says"]
    assert run(["inspect", str(folder)]) == 0
    assert "damaged entry" in capsys.readouterr().out


def test_every_entry_that_we_write_is_read_again(model, tmp_path):
    trained = LayerDropBertForSequenceClassification.from_pretrained(
        model, layerdrop=LayerDropConfig({"encoder": [0, 0.1, 0.2, 0.3]}, never_drop=[0], seed=3)
    )
    trained.save_pretrained(tmp_path / "trained")
    again = LayerDropBertForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert saved_provenance(again.config) == saved_provenance(trained.config)
    assert saved_provenance(again.config)["trained_with"]["never_drop"] == [0]
    prune_layers(again, "0,2,3")
    prune_layers(again, "1,2")
    assert saved_provenance(again.config)["root_keep_layers"] == {"encoder": [2, 3]}
    assert own_provenance(again.config.to_dict()) == saved_provenance(again.config)


def test_unknown_entries_of_a_later_version_are_left_alone():
    entry = {"later": {"anything": 1}, "measured_on": {"dataset": "a/b", "more": 3}}
    assert saved_provenance({"hf_layerdrop": entry}) is entry
    assert MeasuredOn.of(entry["measured_on"]) == MeasuredOn("a/b")
    assert saved_provenance({}) == saved_provenance({"hf_layerdrop": None}) == {}
