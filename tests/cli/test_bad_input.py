"""A damaged checkpoint is refused in one sentence, by the command line and by the loader, and nothing is written."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import build
from damages import HEADERS, OF_DROPPED, WEIGHT, WRONG_SHARDS, change_config, placed, write_index
from hf_layerdrop import save_pruned
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.models.auto import load_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in one file, and one in shards."""
    model = build("BertForSequenceClassification")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="6KB")
    return folder


@pytest.fixture
def copy_of(saved, tmp_path):
    """Copies of the two, to be damaged."""

    def copied(name):
        (tmp_path / "in" / name).mkdir(parents=True)
        for path in (saved / name).iterdir():
            (tmp_path / "in" / name / path.name).write_bytes(path.read_bytes())
        return tmp_path / "in" / name

    return copied


def refused_both_ways(folder, tmp_path, capsys, said, keep_layers="1,3"):
    """Check that a checkpoint is refused with the same sense by `prune` and by ``from_pretrained``."""
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "prune",
        str(folder),
        "--keep-layers",
        keep_layers,
        "--output",
        str(tmp_path / "out"),
        "--no-tokenizer",
    ]
    capsys.readouterr()
    code = run(arguments)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert captured.out == ""
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert re.search(said, lines[0]), lines[0]
    layers = dict(part.split("=") for part in keep_layers.split(";")) if "=" in keep_layers else keep_layers
    with pytest.raises(LayerDropError) as error:
        load_checkpoint(folder, keep_layers=layers)
    assert "\n" not in str(error.value)
    assert re.search(said, str(error.value)), error.value
    assert sorted(tmp_path.rglob("*")) == before


# --- Shards and their index -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"), [*WRONG_SHARDS, *OF_DROPPED], ids=lambda value: getattr(value, "__name__", "")
)
def test_shards_that_do_not_fit_are_refused(damage, said, copy_of, tmp_path, capsys):
    folder = copy_of("shards")
    damage(folder)
    refused_both_ways(folder, tmp_path, capsys, said)


@pytest.mark.parametrize(
    "shard",
    ["../whole/model.safetensors", "ABSOLUTE", "inner/../../whole/model.safetensors", "..", "a\0b", "", 3, None],
)
def test_names_in_an_index_stay_in_the_folder(shard, copy_of, tmp_path, capsys):
    outside = copy_of("whole") / "model.safetensors"  # a good file, with the very tensor
    folder = copy_of("shards")
    write_index(folder, {**placed(folder), WEIGHT: str(outside) if shard == "ABSOLUTE" else shard})
    refused_both_ways(folder, tmp_path, capsys, "names the weight file .*, which is not inside the folder")


# --- Headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("of", ["whole", "shards"])
def test_headers_that_lie_are_refused(of, case, copy_of, tmp_path, capsys):
    damage, said = HEADERS[case]
    folder = copy_of(of)
    path = folder / (placed(folder)[WEIGHT] if of == "shards" else "model.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    refused_both_ways(folder, tmp_path, capsys, said)


# --- Config and weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["whole", "shards"])
@pytest.mark.parametrize("depth", [3, 5, 0, -4, 10**9, "4", 4.0])
def test_a_config_of_another_depth_is_refused(depth, of, copy_of, tmp_path, capsys):
    folder = copy_of(of)
    change_config(folder, num_hidden_layers=depth)
    refused_both_ways(folder, tmp_path, capsys, rf"num_hidden_layers( = |.*value: ){depth!r}", "0,")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("depth", [3, 5])
def test_each_of_two_stacks_has_its_depth(stack, depth, tmp_path, capsys):
    build("BartForConditionalGeneration").save_pretrained(tmp_path / "in")
    change_config(tmp_path / "in", **{f"{stack}_layers": depth})
    refused_both_ways(
        tmp_path / "in",
        tmp_path,
        capsys,
        rf"{stack}_layers = {depth}|the {stack} has {depth} layers",
        "encoder=2;decoder=2",
    )


def test_a_config_of_another_width_is_refused(copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    change_config(folder, hidden_size=32)
    refused_both_ways(folder, tmp_path, capsys, r"\(16,\).*\(32,\).*use the config")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "nothing-known"}, "nothing-known"),
        ({"model_type": None}, "model type `None`"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"architectures": ["NothingKnown"]}, "NothingKnown"),
    ],
)
def test_a_config_of_no_model_is_refused(fields, said, copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    change_config(folder, **fields)
    refused_both_ways(folder, tmp_path, capsys, said)


def test_a_config_that_counts_nothing_is_refused(copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    change_config(folder, num_hidden_layers=None)
    refused_both_ways(folder, tmp_path, capsys, "no stack of layers|num_hidden_layers.* None", "0,")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_layer_that_lacks_a_weight_is_not_written(pickled, copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    weights = load_file(folder / "model.safetensors")
    del weights[WEIGHT]
    arguments = ["prune", str(folder), "--output", str(tmp_path / "out"), "--no-tokenizer"]
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        arguments.append("--allow-pickle")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert run([*arguments, "--keep-layers", "1,3"]) == 2
    said = capsys.readouterr().err
    assert "lacks the weight 'attention.self.query.weight' of layer 1 of the encoder" in said
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--keep-layers", "0,3"]) == 0


@pytest.mark.parametrize("pickled", [False, True])
def test_a_layer_of_an_absurd_number_is_told_in_one_line(pickled, copy_of):
    folder = copy_of("whole")
    weights = load_file(folder / "model.safetensors")
    weights[WEIGHT.replace(".1.", ".300000000.")] = weights.pop(WEIGHT)
    (folder / "model.safetensors").unlink()
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LayerDropError) as error:
        save_pruned(folder, folder / "out", keep_layers="1,3", tokenizer=False, use_safetensors=not pickled)
    assert len(str(error.value)) < 400
    assert not (folder / "out").exists()


# --- Pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pickle_is_refused_and_never_opened(sharded, copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / ("part.bin" if sharded else "pytorch_model.bin"))
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.bin")}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused_both_ways(folder, tmp_path, capsys, "use_safetensors=False in Python or --allow-pickle")


def test_a_pickle_that_runs_code_runs_none_even_if_it_is_allowed(copy_of, tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = copy_of("whole")
    (folder / "model.safetensors").unlink()
    torch.save({WEIGHT: Payload()}, folder / "pytorch_model.bin")
    arguments = ["prune", str(folder), "--keep-layers", "1,3", "--output", str(tmp_path / "out"), "--no-tokenizer"]
    assert run([*arguments, "--allow-pickle"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
