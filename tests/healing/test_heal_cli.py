"""The heal command: before and after on the same rows, a plain checkpoint, and one sentence for wrong input."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from classifiers import bart, model, rows, save_classifier  # noqa: F401 - fixtures
from conftest import build
from hf_layerdrop import read_recommended, read_results
from hf_layerdrop.cli import run
from hf_layerdrop.cli.heal import peak_learning_rate

FLAGS = ("--max_steps", "2", "--use_cpu", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3")


def command(model, rows, output, *more, kept="3"):
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    return ["heal", str(model), *files, "--keep-layers", kept, "--output", str(output), *more]


@pytest.mark.parametrize("method", ["whole", "lora", "distill", "map,distill", "none"])
def test_each_method_ends_in_a_plain_checkpoint(method, model, rows, tmp_path, capsys):
    output = tmp_path / "out" / "healed"
    assert run([*command(model, rows, output, "--method", method, *FLAGS)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("whole model", "cut", "accuracy", "Next: hf-layerdrop push"))
    assert [path.name for path in output.parent.iterdir()] == ["healed"]
    healed = AutoModelForSequenceClassification.from_pretrained(output)
    whole = AutoModelForSequenceClassification.from_pretrained(model)
    assert healed.config.num_hidden_layers == 3
    first = [network.bert.encoder.layer[0].attention.self.query.weight for network in (healed, whole)]
    assert torch.equal(*first) == (method == "none")
    assert torch.allclose(*first, atol=0.2)
    assert not any("lora" in name for name in load_file(output / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(output)("good film").input_ids
    stages = json.loads((output / "healing.json").read_text())
    methods = [name for name in method.split(",") if name != "none"]
    assert [stage["name"] for stage in stages] == ["whole model", "cut", *methods]
    assert [stage["result"]["keep_layers"]["encoder"] for stage in stages[1:]] == [[0, 1, 3]] * (len(stages) - 1)
    assert all("accuracy" in stage["result"]["intervals"] for stage in stages)
    provenance = healed.config.hf_layerdrop
    assert provenance["keep_layers"] == {"encoder": [0, 1, 3]}
    assert provenance["strategy"] == "spread"
    assert set(provenance.get("healed_with", [])) in (set(methods), set(methods) - {"map"})
    (own,) = read_results(output / "depth_results.json")
    assert own.keep_layers["encoder"] == (0, 1, 2)
    assert own.metrics == stages[-1]["result"]["metrics"]
    assert [tuple(one.keep_layers["encoder"]) for one in read_recommended(output).sets] == [(0, 1, 2)]
    card = (output / "README.md").read_text()
    assert ("healed after the cut" in card) == (method != "none")
    assert ("weights unchanged" in card) == (method == "none")


def test_a_map_that_does_not_help_leaves_the_cut_as_it_is(model, rows, tmp_path, capsys):
    for number in range(1, 20):  # a random model, of which some cuts gain by chance and others do not
        weights = save_classifier(tmp_path / f"model{number}")
        network = AutoModelForSequenceClassification.from_pretrained(weights)
        torch.manual_seed(number)
        with torch.no_grad():
            network.classifier.weight.normal_()
        network.save_pretrained(weights)
        output = tmp_path / f"out{number}"
        assert run(command(weights, rows, output, "--map-rows", "5", "--use_cpu")) == 0
        printed = capsys.readouterr().out
        provenance = json.loads((output / "config.json").read_text())["hf_layerdrop"]
        own, whole = (load_file(folder / "model.safetensors") for folder in (output, weights))
        name = "bert.encoder.layer.1.output.dense.weight"
        kept = "The map was kept" in printed
        assert kept or "The map was not kept, and the model is left as it was" in printed
        assert torch.equal(own[name], whole[name]) != kept
        assert ("healed_with" in provenance) == kept
        if not kept:
            return
    pytest.fail("every map helped")


def test_over_half_is_cut_in_two_rounds(model, rows, tmp_path, capsys):
    output = tmp_path / "healed"
    assert run(command(model, rows, output, "--method", "distill", "--bf16", *FLAGS, kept="0,")) == 0
    stages = json.loads((output / "healing.json").read_text())
    assert [stage["name"] for stage in stages[2:]] == ["round 1: distill", "round 2: distill"]
    kept = [stage["result"]["keep_layers"]["encoder"] for stage in stages[2:]]
    assert kept == [[0, 3], [0]]
    config = json.loads((output / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert config["hf_layerdrop"]["keep_layers"] == config["hf_layerdrop"]["root_keep_layers"] == {"encoder": [0]}
    assert "round 2: distill" in capsys.readouterr().out


def test_a_language_model_is_healed(tmp_path, capsys):
    network = build("BertLMHeadModel", is_decoder=True)
    save_classifier(tmp_path / "tokenizer")
    network.resize_token_embeddings(10)
    network.save_pretrained(tmp_path / "lm")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (tmp_path / "tokenizer" / name).exists():
            shutil.copy(tmp_path / "tokenizer" / name, tmp_path / "lm" / name)
    text = tmp_path / "text.txt"
    text.write_text("good film a bad film not good a film\n" * 60)
    files = ["--train-file", str(text), "--validation-file", str(text), "--task", "clm", "--max-length", "16"]
    output = ["--output", str(tmp_path / "out"), "--keep-layers", "2", "--method", "map,distill"]
    assert run(["heal", str(tmp_path / "lm"), *files, *output, *FLAGS]) == 0
    stages = json.loads((tmp_path / "out" / "healing.json").read_text())
    assert [stage["name"] for stage in stages] == ["whole model", "cut", "map", "distill"]
    assert all(stage["result"]["metrics"]["perplexity"] > 1 for stage in stages)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "magic"], "no way to heal called 'magic'"),
        (["--method", "map,map"], "each once"),
        (["--method", "none,map"], "none alone"),
        (["--keep-layers", "all"], "nothing to heal"),
        (["--keep-layers", "9"], "from 1 to 4"),
        (["--rounds", "3"], "1 layers cannot be removed in 3 rounds"),
        (["--rounds", "0"], "rounds is 0"),
        (["--map-rows", "0"], "rows is 0"),
        (["--train-file", "none.csv"], "none.csv"),
        (["--task", "mnli"], "3 labels"),
        (["--output_dir", "x"], "healing keeps no checkpoints"),
        (["--resume_from_checkpoint"], "healing keeps no checkpoints"),
        (["--max_stepz", "2"], "--max"),
        (["--output", "."], "--overwrite"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(model, rows, tmp_path, more, said, capsys):
    assert run(command(model, rows, tmp_path / "out", *more)) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [rows]


def test_a_model_with_another_head_is_refused(model, rows, tmp_path, capsys):
    assert run(command(model, rows, tmp_path / "out", "--task", "clm")) == 2
    assert "measures models with the head of AutoModelForCausalLM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_below_a_file_is_refused(model, rows, tmp_path, capsys):
    assert run(command(model, rows, rows / "out")) == 2
    assert "is a file and not a folder" in capsys.readouterr().err
    assert run(command(model, rows, model / "out")) == 2
    assert "lies inside of" in capsys.readouterr().err


def test_no_data_and_other_labels_are_refused(model, rows, tmp_path, capsys):
    where = ["--keep-layers", "3", "--output", str(tmp_path / "out")]
    assert run(["heal", str(model), *where]) == 2
    assert "--train-file and --validation-file" in capsys.readouterr().err
    assert run(["heal", str(model), *where, "--validation-file", str(rows)]) == 2
    assert "without --train-file" in capsys.readouterr().err
    three = tmp_path / "three.csv"
    three.write_text("sentence,label\n" + "\n".join(f"good film,{i % 3}" for i in range(9)))
    assert run(command(model, three, tmp_path / "out")) == 2
    errors = capsys.readouterr().err
    assert "3 labels" in errors
    assert not (tmp_path / "out").exists()


def test_lora_without_peft_is_one_sentence_with_the_line_to_type(model, rows, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("hf_layerdrop.errors.find_spec", lambda name: None if name == "peft" else find(name))
    assert run(command(model, rows, tmp_path / "out", "--method", "map,lora")) == 2
    errors = capsys.readouterr().err
    assert 'pip install "hf-layerdrop[lora]"' in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [rows]


@pytest.mark.parametrize(
    ("state", "peak"),
    [
        ({"log_history": [{"learning_rate": 1e-5}, {"learning_rate": 3e-5}, {"eval_loss": 1.0}]}, 3e-5),
        ({"log_history": [{"learning_rate": "hot"}, 3]}, None),
        ({"log_history": None}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_learning_rate_of_the_training_is_read_where_it_stands(state, peak, tmp_path):
    if state is not None:
        (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert peak_learning_rate(str(tmp_path)) == peak
