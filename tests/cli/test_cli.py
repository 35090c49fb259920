import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from classifiers import bart, model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop.cli import app, run
from hf_layerdrop.cli.depths import parse_depths
from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.results.table import read_results
from hub_server import READ_TOKEN, HubServer
from light import run_lightly

COMMANDS = [command.name for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once(command):
    code, out, err = run_lightly(command, "--help")
    assert (code, err) == (0, "")
    assert "--help" in out


def test_version_and_overview_come_at_once():
    for argument in ([], ["--help"], ["--version"]):
        code, out, err = run_lightly(*argument)
        assert (code, err) == (0, "")
        assert "hf-layerdrop" in out


def test_the_package_itself_is_light():
    script = "import sys, hf_layerdrop; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_inspect_of_a_folder_prints_nothing_but_its_facts(model, capsys):
    assert run(["inspect", str(model), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out)["stacks"][0]["depth"] == 4


TRAIN = ["train", "--model", "MODEL", "--task", "sst2"]
BAD_INPUT = {
    "depth too large": (["prune", "MODEL", "--keep-layers", "5", "--output", "OUT"], "from 1 to 4"),
    "unknown strategy": (["prune", "MODEL", "--keep-layers", "evry_other", "--output", "OUT"], "every_other"),
    "unknown stack": (["prune", "MODEL", "--keep-layers", "decoder=2", "--output", "OUT"], "encoder"),
    "bare indices for two stacks": (["prune", "BART", "--keep-layers", "0,", "--output", "OUT"], "encoder=2;decoder=1"),
    "output exists": (["prune", "MODEL", "--keep-layers", "2", "--output", "MODEL"], "--overwrite"),
    "no such folder": (["prune", "OUT/no/such/folder", "--keep-layers", "2", "--output", "OUT"], "does not exist"),
    "missing option": (["prune", "MODEL", "--keep-layers", "2"], "prune --help"),
    "unknown option": (["prune", "MODEL", "--keep-layer", "2", "--output", "OUT"], "--keep-layers"),
    "unknown command": (["pruen", "MODEL"], "--help"),
    "pushed depth": (["push", "MODEL", "--keep-layers", "9", "--repo-id", "me/small"], "from 1 to 4"),
    "pushed results": (["push", "MODEL", "--keep-layers", "2", "--repo-id", "me/x", "--results", "no.json"], "no.json"),
    "repository name": (["push", "MODEL", "--keep-layers", "2", "--repo-id", "a//b"], "user/name"),
    "no data": (["sweep", "MODEL", "--output", "OUT"], "--validation-file"),
    "unknown task": (["sweep", "MODEL", "--task", "sst3", "--output", "OUT"], "sst2"),
    "other labels": (["sweep", "MODEL", "--task", "mnli", "--output", "OUT"], "3 labels"),
    "no classifier": (["sweep", "ENCODER", "--task", "sst2", "--output", "OUT"], "ForSequenceClassification"),
    "swept depth": (
        ["sweep", "MODEL", "--task", "sst2", "--depths", "4,5", "--output", "OUT"],
        "'4,5', .* depth of 5.*1 to 4",
    ),
    "output is a file": (
        ["sweep", "MODEL", "--task", "sst2", "--overwrite", "--output", "MODEL/config.json"],
        "is a file",
    ),
    "swept folder": (["sweep", "MODEL", "--task", "sst2", "--output", "MODEL"], "--overwrite"),
    "inspected file": (["inspect", "MODEL/config.json"], "is a file"),
    "broken weights": (["inspect", "BROKEN"], "download it again"),
    "output below a file": (["prune", "MODEL", "--keep-layers", "2", "--output", "MODEL/vocab.txt/a"], "is a file and"),
    "swept below a file": (["sweep", "MODEL", "--task", "sst2", "--output", "MODEL/vocab.txt/a/b"], "is a file and"),
    "found below a file": (
        ["search", "MODEL", "--depth", "2", "--task", "sst2", "--output", "MODEL/vocab.txt/found.json"],
        "is a file and",
    ),
    "report below a file": (
        ["sweep", "MODEL", "--task", "sst2", "--output", "OUT", "--report", "MODEL/vocab.txt/report.html"],
        "is a file and",
    ),
    "trained below a file": ([*TRAIN, "--output_dir", "MODEL/vocab.txt/a"], "is a file and"),
    "demo below a file": (["demo", "--output", "MODEL/vocab.txt/a"], "is a file and"),
    "seed of the demo": (["demo", "--output", "OUT", "--seed", "-1"], "--seed.*-1"),
    "steps of the demo": (["demo", "--output", "OUT", "--steps", "0"], r"--steps.*\b0\b"),
    "rate of the demo": (["demo", "--output", "OUT", "--rate", "1"], "--rate is 1.*less than 1"),
    "task of the demo": (["demo", "--output", "OUT", "--task", "mlm"], "rte, wnli, or leave --task out for the sample"),
    "no number": (["demo", "--output", "OUT", "--steps", "many"], "--steps.*'many'"),
    "two rates of a stack": ([*TRAIN, "--layerdrop", "encoder=0.1; encoder=0.3"], "'encoder' 2 times"),
    "rates of stacks by comma": (
        [*TRAIN, "--layerdrop", "encoder=0.2,decoder=0.1"],
        "is 'encoder=0.2,decoder=0.1'; give .*'encoder=0.2;decoder=0.1'",
    ),
    "a stack without a rate": ([*TRAIN, "--layerdrop", "encoder="], "is 'encoder='; give"),
    "no tokenizer to sweep": (["sweep", "BARE", "--task", "sst2", "--output", "OUT"], "has no tokenizer"),
    "no tokenizer to search": (
        ["search", "BARE", "--depth", "2", "--task", "sst2", "--output", "OUT"],
        "has no tokenizer",
    ),
    "no tokenizer to train": (
        ["train", "--model", "BARE", "--task", "sst2", "--output_dir", "OUT"],
        "has no tokenizer",
    ),
    "revision of a folder": (
        ["prune", "MODEL", "--keep-layers", "2", "--output", "OUT", "--revision", "v2"],
        "--revision v2 is for a model on the Hub",
    ),
    "inspected revision": (["inspect", "MODEL", "--revision", "v2"], "a local folder"),
    "pickle": (["prune", "PICKLE", "--keep-layers", "2", "--output", "OUT"], "--allow-pickle"),
}


@pytest.fixture
def places(model, bart, tmp_path):
    """Folders that BAD_INPUT names by a word."""
    broken, pickle, encoder, bare = (tmp_path / name for name in ("broken", "pickle", "encoder", "bare"))
    for folder in (broken, pickle, encoder, bare):
        folder.mkdir()
        (folder / "config.json").write_text((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-10])
    (pickle / "pytorch_model.bin").write_bytes(b"PK")
    (encoder / "model.safetensors").write_bytes(weights)
    (bare / "model.safetensors").write_bytes(weights)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    named = {"MODEL": model, "BART": bart, "OUT": tmp_path / "out"}
    return named | {"BROKEN": broken, "PICKLE": pickle, "ENCODER": encoder, "BARE": bare}


def in_places(arguments, places):
    for word, folder in places.items():
        arguments = [argument.replace(word, str(folder)) for argument in arguments]
    return arguments


@pytest.mark.parametrize("case", BAD_INPUT)
def test_wrong_input_is_answered_by_one_line_and_writes_nothing(case, places, tmp_path, capsys):
    arguments, said = BAD_INPUT[case]
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    code = run(in_places(arguments, places))
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    assert re.search(said, err), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--task", "rte", "--output", "OUT"], "leave --task out for the sample of SST-2"),
        (["sweep", "MODEL", "--task", "sst2", "--output", "OUT"], "pass --validation-file"),
        ([*TRAIN, "--output_dir", "OUT"], "pass --train-file and --validation-file"),
    ],
)
def test_without_the_hub_a_command_names_an_option_that_it_has(words, said, places, capsys):
    assert run(in_places(words, places)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "offline mode is enabled" in err
    assert said in err
    assert all(option in help_of(words[0], capsys) for option in re.findall(r"--[a-z-]+", err))
    assert not places["OUT"].exists()


def help_of(command, capsys):
    assert run([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "/none"], ["inspect", "/none", "--debug"]])
def test_debug_shows_the_traceback_and_keeps_the_code(arguments, capsys):
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "CheckpointError" in err


def test_what_nobody_expected_is_one_line_too(model, monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("over\nthere")

    monkeypatch.setattr("hf_layerdrop.cli.inspect.read_headers", fail)
    assert run(["inspect", str(model)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ZeroDivisionError: over there" in err
    assert "--debug" in err


def test_an_interrupt_has_its_own_code(model, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_layerdrop.cli.inspect.read_headers", interrupt)
    assert run(["inspect", str(model)]) == 130


def test_inspect_shows_what_was_saved(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    config = json.loads((model / "config.json").read_text())
    saved = {"rates": {"encoder": [0.1, 0.2, 0.2, 0.1]}, "trained_with": {"rate": 0.2}, "source": "a/b"}
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hf_layerdrop": saved}))
    assert run(["inspect", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    weights = load_file(tmp_path / "model.safetensors")
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    of_layers = [w.numel() for name, w in weights.items() if "encoder.layer." in name]
    assert sum(facts["stacks"][0]["parameters_per_layer"]) == sum(of_layers)
    assert facts["stacks"][0]["rates"] == saved["rates"]["encoder"]
    assert facts["hf_layerdrop"] == saved
    assert run(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("bert", "encoder", "0.1, 0.2, 0.2, 0.1", "a/b"))


def test_prune_writes_the_kept_layers(model, tmp_path, capsys):
    output = tmp_path / "small"
    assert run(["prune", str(model), "--keep-layers", "0,3", "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    whole, cut = load_file(model / "model.safetensors"), load_file(output / "model.safetensors")
    name = "bert.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(cut[name.format(1)], whole[name.format(3)])
    assert not torch.equal(cut[name.format(1)], whole[name.format(1)])
    assert name.format(2) not in cut
    assert run(["prune", str(model), "--keep-layers", "1,", "--output", str(output)]) == 2
    assert run(["prune", str(model), "--keep-layers", "1,", "--output", str(output), "--overwrite"]) == 0
    assert torch.equal(load_file(output / "model.safetensors")[name.format(0)], whole[name.format(1)])


def test_prune_reads_a_pickle_only_if_allowed(model, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    arguments = ["prune", str(folder), "--keep-layers", "2", "--output", str(tmp_path / "small")]
    assert run(arguments) == 2
    assert run([*arguments, "--allow-pickle"]) == 2  # it has no tokenizer either
    assert not (tmp_path / "small").exists()
    assert run([*arguments, "--allow-pickle", "--no-tokenizer"]) == 0
    assert run(["inspect", str(tmp_path / "small")]) == 0


def test_sweep_measures_each_depth_and_writes_table_and_plot(model, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "swept"
    arguments = ["sweep", str(model), "--validation-file", str(rows), "--text-columns", "sentence"]
    assert run([*arguments, "--depths", "4,2,1", "--output", str(output)]) == 0
    results = read_results(output / "depth_results.json")
    assert [result.keep_layers["encoder"] for result in results] == [(0, 1, 2, 3), (0, 3), (3,)]
    assert len({result.metrics["loss"] for result in results}) == 3
    assert all(0 <= result.metrics["accuracy"] <= 1 for result in results)
    assert sorted(path.name for path in output.iterdir()) == ["depth.png", "depth.svg", "depth_results.json"]
    assert "0-3" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["swept", "validation.csv"]  # and nothing beside it
    (output / "mine.txt").write_text("kept")
    assert run([*arguments, "--depths", "1", "--output", str(output)]) == 2
    assert run([*arguments, "--depths", "1", "--output", str(output), "--overwrite"]) == 0
    assert len(read_results(output / "depth_results.json")) == 1
    assert (output / "mine.txt").read_text() == "kept"


def test_sweep_names_both_sets_of_mnli(tmp_path):
    folder = save_classifier(tmp_path / "mnli", num_labels=3)
    files = [tmp_path / "matched.csv", tmp_path / "mismatched.csv"]
    for file in files:
        file.write_text("premise,hypothesis,label\ngood film,bad film,2\na film,film,0\n")
    data = [part for file in files for part in ("--validation-file", str(file))]
    output = tmp_path / "swept"
    assert run(["sweep", str(folder), "--task", "mnli", *data, "--depths", "2", "--output", str(output)]) == 0
    (result,) = read_results(output / "depth_results.json")
    assert {"accuracy", "accuracy_mm"} <= set(result.metrics)


def test_sweep_without_a_tokenizer_says_so(model, rows, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    output = tmp_path / "swept"
    arguments = ["sweep", str(tmp_path), "--validation-file", str(rows), "--text-columns", "sentence"]
    assert run([*arguments, "--output", str(output)]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert not output.exists()


TWO_STACKS = {"encoder": 4, "decoder": 2}


@pytest.mark.parametrize(
    ("text", "stacks", "kept"),
    [
        ("3,1", {"layers": 4}, [(0, 1, 3), (3,)]),
        ("all", {"layers": 3}, [(0, 1, 2), (0, 2), (2,)]),
        ("all, first:2 ,every_other", {"layers": 3}, [(0, 1, 2), (0, 1), (0, 2)]),
        ("layers=2,1", {"layers": 3}, [(0, 2), (2,)]),
        ("2,1", TWO_STACKS, [((0, 3), (0, 1)), ((3,), (1,))]),
        ("all", TWO_STACKS, [((0, 1, 2, 3), (0, 1)), ((0, 3), (0, 1)), ((3,), (1,))]),
        ("all", {"encoder": 2, "decoder": 2}, [((0, 1), (0, 1)), ((1,), (1,))]),
        ("decoder=all", TWO_STACKS, [((0, 1, 2, 3), (0, 1)), ((0, 1, 2, 3), (1,))]),
        ("encoder=2; decoder=2,1", TWO_STACKS, [((0, 3), (0, 1)), ((0, 3), (1,))]),
        ("encoder=3,1;decoder=2,1", TWO_STACKS, [((0, 1, 3), (0, 1)), ((3,), (1,))]),
        ("text=1", {"text": 2, "vision": 2}, [((1,), (0, 1))]),
    ],
)
def test_what_a_list_of_depths_means(text, stacks, kept):
    found = [tuple(sub_network.values()) for sub_network in parse_depths(text, stacks)]
    assert found == [layers if len(stacks) > 1 else (layers,) for layers in kept]


@pytest.mark.parametrize("wrong", ["", "0", "5", "3,", "-1", "9" * 5000, "a", "layers=5", "layers=2,,1", "stack=2"])
def test_no_list_of_depths(wrong):
    with pytest.raises(KeepLayersError, match=r"1 to 4|layers=4,1|every_other, every_other:p"):
        parse_depths(wrong, {"layers": 4})


@pytest.mark.parametrize(
    ("text", "stacks", "said"),
    [
        ("3", TWO_STACKS, "stack 'decoder' has 2 layers"),
        ("all", {"text": 2, "vision": 2}, "write 'text=all'"),
        ("1", {"text": 2, "vision": 2}, "'text' .2 layers. and 'vision'"),
        ("encoder=4,3,2;decoder=2,1", TWO_STACKS, "lists 2 depths of the stack 'decoder' beside 3"),
        ("decoder=2;decoder=1", TWO_STACKS, "write each once"),
    ],
)
def test_depths_that_do_not_fit_several_stacks(text, stacks, said):
    with pytest.raises(KeepLayersError, match=said):
        parse_depths(text, stacks)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "hf_home")
        yield server


def test_push_publishes_and_inspect_reads_it_back(model, hub, capsys):
    arguments = ["push", str(model), "--keep-layers", "2", "--repo-id", "alice/small", "--private"]
    assert run(arguments) == 0
    assert "alice/small" in capsys.readouterr().out
    assert hub.repos["alice/small"].private
    assert {"model.safetensors", "config.json", "README.md"} <= set(hub.repos["alice/small"].files())
    assert run(["inspect", "alice/small", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stacks"][0]["depth"] == 2
    assert facts["hf_layerdrop"]["keep_layers"] == {"encoder": [0, 3]}


def test_push_with_a_token_that_may_not_write(model, hub, capsys):
    arguments = ["push", str(model), "--keep-layers", "2", "--repo-id", "alice/small", "--token", READ_TOKEN]
    assert run(arguments) == 2
    assert READ_TOKEN not in capsys.readouterr().err
    assert "alice/small" not in hub.repos


@pytest.mark.parametrize("name", ["alice/nothing", "no such name"])
def test_a_model_that_the_hub_does_not_have(name, hub, capsys):
    assert run(["inspect", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
