"""What may be wrong with a checkpoint, as changes of a good one, each with what a refusal has to speak of."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
WEIGHT = "bert.encoder.layer.1.attention.self.query.weight"  # of a layer that is kept, if 1 and 3 are
DROPPED = "bert.encoder.layer.0.attention.self.query.weight"


# --- Shards and their index -----------------------------------------------------------------------


def placed(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def lose_a_shard_of_kept_layers(folder):
    (folder / placed(folder)[WEIGHT]).unlink()


def lose_a_shard_of_dropped_layers(folder):
    (folder / placed(folder)[DROPPED]).unlink()


def name_a_shard_that_is_not_there(folder):
    write_index(folder, {**placed(folder), WEIGHT: "model-00077-of-00099.safetensors"})


def name_a_wrong_shard(folder):
    shards = sorted(set(placed(folder).values()))
    write_index(folder, {name: shards[shards.index(shard) - 1] for name, shard in placed(folder).items()})


def name_a_foreign_shard_of_other_names(folder):
    save_file({"other.weight": torch.ones(3)}, folder / "foreign.safetensors", {"format": "pt"})
    write_index(folder, {**placed(folder), WEIGHT: "foreign.safetensors"})


def take_away(folder, name):
    path = folder / placed(folder)[name]
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, {"format": "pt"})


def name_a_foreign_shard_of_other_shapes(folder):
    save_file({WEIGHT: torch.ones(16, 24)}, folder / "foreign.safetensors", {"format": "pt"})
    take_away(folder, WEIGHT)
    write_index(folder, {**placed(folder), WEIGHT: "foreign.safetensors"})


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
    (name_a_shard_that_is_not_there, "model-00077-of-00099.*cannot be read: No such file"),
    (name_a_wrong_shard, "lacks the tensor .* that model.safetensors.index.json places there"),
    (name_a_foreign_shard_of_other_names, "foreign.safetensors.* lacks the tensor"),
    (name_a_foreign_shard_of_other_shapes, r"layer\.1\.attention.self.query.weight' .*\(16, 24\).*\(16, 16\)"),
    (name_a_folder, "inner.*cannot be read: Is a directory"),
    (name_a_file_that_is_no_weights, "config.json' is corrupt"),
    (name_a_pickle, "part.bin' is corrupt"),
    (
        lose_a_layer_of_the_index,
        r"hold 3 layers \(0 to 3, without 2\) of .*, but config.json says num_hidden_layers = 4",
    ),
    (empty_the_index, "index.json' is corrupt: it has no weight_map"),
    (make_the_index_a_list, "index.json' is corrupt: it is not a JSON object"),
    (garble_the_index, "index.json' is corrupt: it is not a JSON object"),
    (cut_a_shard_short, "file not fully covered"),
]


# Not noticed on the Hub, where nothing is asked of layers that are dropped.
OF_DROPPED = [(lose_a_shard_of_dropped_layers, "weight file .*cannot be read: No such file")]


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
    "longer than the file": (with_length(10**7), "invalid header length"),
    "longer than any header": (with_length(2**40), "header too large"),
    "a negative length": (with_length(2**64 - 8), "header too large"),
    "a length of none": (with_length(0), "invalid JSON in header"),
    "a length within the header": (with_length(40), "invalid JSON in header"),
    "not JSON": (with_header(lambda _: b"\x80\x05not json"), "invalid UTF-8 in header"),
    "a list": (with_header(lambda _: []), "invalid JSON in header"),
    "a pickle": (lambda _: b"\x80\x05]\x94K\x01a.", "header too small|invalid header length|header too large"),
    "an empty file": (lambda _: b"", "header too small|HTTP status 416"),
    "overlapping tensors": (placing(lambda begin, end: [begin - 4, end - 4]), "invalid offset for tensor"),
    "a gap": (placing(lambda begin, end: [begin + 4, end + 4]), "invalid offset for tensor"),
    "beyond the file": (placing(lambda begin, end: [begin + 2**40, end + 2**40]), "invalid offset for tensor"),
    "offsets the wrong way round": (placing(lambda begin, end: [end, begin]), "invalid offset for tensor"),
    "negative offsets": (placing(lambda begin, end: [begin - end, 0]), "invalid JSON in header"),
    "offsets that are no numbers": (placing(lambda begin, end: [str(begin), str(end)]), "invalid JSON in header"),
    "three offsets": (placing(lambda begin, end: [begin, end, end]), "invalid JSON in header"),
    "an unknown dtype": (telling(dtype="F31"), "unknown variant `F31`"),
    "no dtype": (telling(dtype=None), "invalid JSON in header"),
    "another dtype": (telling(dtype="F16"), "invalid shape, data type, or offset for tensor"),
    "a larger shape": (telling(shape=[16, 32]), "invalid shape, data type, or offset for tensor"),
    "a negative shape": (telling(shape=[-16, -16]), "invalid JSON in header"),
    "a tensor that is a number": (with_header(lambda header: {**header, WEIGHT: 3}), "invalid JSON in header"),
    "less data": (lambda content: content[:-12], "file not fully covered"),
    "more data": (lambda content: content + b"\0" * 12, "file not fully covered"),
    "metadata that is a list": (with_header(lambda header: {**header, "__metadata__": [1]}), "invalid JSON in header"),
    "metadata of numbers": (
        with_header(lambda header: {**header, "__metadata__": {"format": 3}}),
        "invalid JSON in header",
    ),
}


# --- Config ---------------------------------------------------------------------------------------


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
