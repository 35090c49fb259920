"""A damaged checkpoint is refused in one sentence, by the command line and by the loader, and nothing is written."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import build
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.modeling import load_checkpoint

INDEX = "model.safetensors.index.json"
WEIGHT = "bert.encoder.layer.0.attention.self.query.weight"


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


def placed(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def lose_a_shard_of_kept_layers(folder):
    (folder / placed(folder)[WEIGHT.replace("0", "1")]).unlink()


def lose_a_shard_of_dropped_layers(folder):
    (folder / placed(folder)[WEIGHT]).unlink()


def name_a_shard_that_is_not_there(folder):
    write_index(folder, {**placed(folder), WEIGHT: "model-00077-of-00099.safetensors"})


def name_a_wrong_shard(folder):
    shards = sorted(set(placed(folder).values()))
    write_index(folder, {name: shards[shards.index(shard) - 1] for name, shard in placed(folder).items()})


def name_a_foreign_shard_of_other_names(folder):
    save_file({"other.weight": torch.ones(3)}, folder / "foreign.safetensors", {"format": "pt"})
    write_index(folder, {**placed(folder), WEIGHT.replace("0", "1"): "foreign.safetensors"})


def take_away(folder, name):
    path = folder / placed(folder)[name]
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, {"format": "pt"})


def name_a_foreign_shard_of_other_shapes(folder):
    name = WEIGHT.replace("0", "1")
    save_file({name: torch.ones(16, 24)}, folder / "foreign.safetensors", {"format": "pt"})
    take_away(folder, name)
    write_index(folder, {**placed(folder), name: "foreign.safetensors"})


def name_a_folder(folder):
    (folder / "inner").mkdir()
    write_index(folder, {**placed(folder), WEIGHT: "inner"})


def name_a_file_that_is_no_weights(folder):
    write_index(folder, {**placed(folder), WEIGHT: "config.json"})


def name_a_pickle(folder):
    torch.save({WEIGHT: torch.ones(16, 16)}, folder / "part.bin")
    write_index(folder, {**placed(folder), WEIGHT: "part.bin"})


def lose_a_layer_of_the_index(folder):
    write_index(folder, {name: shard for name, shard in placed(folder).items() if "layer.2." not in name})


def empty_the_index(folder):
    write_index(folder, {})


def make_the_index_a_list(folder):
    (folder / INDEX).write_text("[]")


def garble_the_index(folder):
    (folder / INDEX).write_text('{"weight_map": {')


def cut_a_shard_short(folder):
    path = folder / placed(folder)[WEIGHT]
    path.write_bytes(path.read_bytes()[:-7])


WRONG_SHARDS = [
    (lose_a_shard_of_kept_layers, "weight file .*cannot be read: No such file"),
    (lose_a_shard_of_dropped_layers, "weight file .*cannot be read: No such file"),
    (name_a_shard_that_is_not_there, "model-00077-of-00099.*cannot be read: No such file"),
    (name_a_wrong_shard, "lacks the tensor .* that model.safetensors.index.json places there"),
    (name_a_foreign_shard_of_other_names, "foreign.safetensors.* lacks the tensor"),
    (name_a_foreign_shard_of_other_shapes, r"attention.self.query.weight' .*\(16, 24\).*\(16, 16\)"),
    (name_a_folder, "inner.*cannot be read: Is a directory"),
    (name_a_file_that_is_no_weights, "config.json' is corrupt"),
    (name_a_pickle, "part.bin' is corrupt"),
    (
        lose_a_layer_of_the_index,
        r"hold 3 layers of .* \(layers missing: 2\), but config.json says num_hidden_layers = 4",
    ),
    (empty_the_index, "index.json' is corrupt: it has no weight_map"),
    (make_the_index_a_list, "index.json' is corrupt: it is not a JSON object"),
    (garble_the_index, "index.json' is corrupt: it is not a JSON object"),
    (cut_a_shard_short, "truncated, 7 bytes are missing"),
]


@pytest.mark.parametrize(("damage", "said"), WRONG_SHARDS, ids=[damage.__name__ for damage, _ in WRONG_SHARDS])
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


def with_header(change):
    def damage(content):
        length = int.from_bytes(content[:8], "little")
        raw = change(json.loads(content[8 : 8 + length]))
        raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        return len(raw).to_bytes(8, "little") + raw + content[8 + length :]

    return damage


def with_length(length):
    return lambda content: length.to_bytes(8, "little") + content[8:]


def placing(place):
    """Move a tensor to where ``place`` puts it, given its offsets."""

    def change(header):
        header[WEIGHT]["data_offsets"] = place(*header[WEIGHT]["data_offsets"])
        return header

    return with_header(change)


def telling(**facts):
    return with_header(lambda header: {**header, WEIGHT: {**header[WEIGHT], **facts}})


HEADERS = {
    "longer than the file": (with_length(10**7), "too short for its header"),
    "longer than any header": (with_length(2**40), "too short for its header"),
    "a negative length": (with_length(2**64 - 8), "too short for its header"),
    "a length of none": (with_length(0), "its header is not a JSON object"),
    "a length within the header": (with_length(40), "its header is not a JSON object"),
    "not JSON": (with_header(lambda _: b"\x80\x05not json"), "its header is not a JSON object"),
    "a list": (with_header(lambda _: []), "its header is not a JSON object"),
    "a pickle": (lambda _: b"\x80\x05]\x94K\x01a.", "too short for its header"),
    "an empty file": (lambda _: b"", "too short for its header"),
    "twice the same name": (
        with_header(lambda header: f'{{"{WEIGHT}": {json.dumps(header[WEIGHT])}, {json.dumps(header)[1:]}'.encode()),
        "its header is not a JSON object",
    ),
    "overlapping tensors": (placing(lambda begin, end: [begin - 4, end - 4]), "begins at byte .* instead of"),
    "a gap": (placing(lambda begin, end: [begin + 4, end + 4]), "begins at byte .* instead of"),
    "beyond the file": (placing(lambda begin, end: [begin + 2**40, end + 2**40]), "begins at byte .* instead of"),
    "offsets the wrong way round": (placing(lambda begin, end: [end, begin]), "cannot take -"),
    "negative offsets": (placing(lambda begin, end: [begin - end, 0]), "no usable shape and offsets"),
    "offsets that are no numbers": (placing(lambda begin, end: [str(begin), str(end)]), "no usable shape and offsets"),
    "three offsets": (placing(lambda begin, end: [begin, end, end]), "no usable shape and offsets"),
    "an unknown dtype": (telling(dtype="F31"), "unknown dtype 'F31'"),
    "no dtype": (telling(dtype=None), "unknown dtype None"),
    "another dtype": (telling(dtype="F16"), "cannot take 1024 bytes"),
    "a larger shape": (telling(shape=[16, 32]), "cannot take 1024 bytes"),
    "a negative shape": (telling(shape=[-16, -16]), "no usable shape and offsets"),
    "a tensor that is a number": (with_header(lambda header: {**header, WEIGHT: 3}), "does not describe the tensor"),
    "less data": (lambda content: content[:-12], "truncated, 12 bytes are missing"),
    "more data": (lambda content: content + b"\0" * 12, "12 bytes that its header does not know"),
    "metadata that is a list": (with_header(lambda header: {**header, "__metadata__": [1]}), "__metadata__"),
    "metadata of numbers": (with_header(lambda header: {**header, "__metadata__": {"format": 3}}), "__metadata__"),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("of", ["whole", "shards"])
def test_headers_that_lie_are_refused(of, case, copy_of, tmp_path, capsys):
    damage, said = HEADERS[case]
    folder = copy_of(of)
    path = folder / (placed(folder)[WEIGHT] if of == "shards" else "model.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    refused_both_ways(folder, tmp_path, capsys, said)


# --- Config and weights ---------------------------------------------------------------------------


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_config_that_counts_nothing_is_refused(copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    change_config(folder, num_hidden_layers=None)
    refused_both_ways(folder, tmp_path, capsys, "no stack of layers|num_hidden_layers.* None", "0,")


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


def test_a_layer_that_lacks_a_weight_is_not_written(copy_of, tmp_path, capsys):
    folder = copy_of("whole")
    weights = load_file(folder / "model.safetensors")
    del weights[WEIGHT.replace("0", "3")]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    arguments = ["prune", str(folder), "--output", str(tmp_path / "out"), "--no-tokenizer"]
    assert run([*arguments, "--keep-layers", "1,3"]) == 2
    said = capsys.readouterr().err
    assert "lacks the weight 'attention.self.query.weight' of layer 3 of the encoder" in said
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--keep-layers", "0,1"]) == 0


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
