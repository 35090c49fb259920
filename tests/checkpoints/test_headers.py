import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.checkpoints.headers import has_only_pickle, read_checkpoint, read_config, read_header
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.errors import CheckpointError, LayerDropError

BERT_CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 4}


def header_of(shapes, dtype="F32"):
    """Describe tensors of 4-byte values as safetensors does."""
    header, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return header


def write_safetensors(path, header, data=None, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        data = bytes(max(entry["data_offsets"][1] for entry in header.values()))
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def bert_shapes(layers=4, path="encoder.layer"):
    shapes = {"embeddings.word_embeddings.weight": (10, 4), "pooler.dense.weight": (4, 4)}
    for layer in range(layers):
        shapes[f"{path}.{layer}.attention.self.query.weight"] = (4, 4)
        shapes[f"{path}.{layer}.output.dense.bias"] = (4,)
    return shapes


@pytest.fixture
def bert_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT_CONFIG))
    write_safetensors(tmp_path / "model.safetensors", header_of(bert_shapes()))
    return tmp_path


def test_a_checkpoint_is_described_by_its_headers(bert_folder):
    headers = read_checkpoint(bert_folder)
    assert headers.model_type == "bert"
    assert headers.parameters == 40 + 16 + 4 * 20


def test_headers_agree_with_what_safetensors_writes_and_reads(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors import safe_open
    from safetensors.torch import save_file

    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
    written = {f"t{i}": torch.zeros(i + 1, 3, dtype=dtype) for i, dtype in enumerate(dtypes)}
    save_file(
        {**written, "scalar": torch.tensor(1.0), "empty": torch.zeros(0, 2)},
        tmp_path / "w.safetensors",
        {"format": "pt"},
    )
    header = read_header(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert set(header) == set(file.keys())
        for name, info in header.items():
            assert info.shape == tuple(file.get_slice(name).get_shape())
            assert info.dtype == file.get_slice(name).get_dtype()
    assert header["t1"].nbytes == 2 * 3 * 2
    assert header["t2"].parameters == 0  # an integer buffer
    assert header["scalar"].parameters == 1


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "data", "length", "said"),
    [
        (entry(), b"\0" * 4, None, "file not fully covered"),
        (entry(), b"\0" * 9, None, "file not fully covered"),
        (entry(), b"\0" * 8, 10**6, "invalid header length"),
        (entry(), b"\0" * 8, 2**63, "header too large"),
        (entry("F31"), b"\0" * 8, None, "unknown variant `F31`"),
        (entry("F31\x1b[2J\n"), b"\0" * 8, None, r"unknown variant `F31\?\[2J `"),
        (entry("F" * 99999), b"\0" * 8, None, "unknown variant `F{200,300}; download it again"),
        (entry(shape=(3,)), b"\0" * 8, None, "invalid shape, data type, or offset"),
        (entry(shape=(2**40, 2**40)), b"\0" * 8, None, "overflow"),
        (entry(offsets=(4, 12)), b"\0" * 12, None, "invalid offset for tensor `w`"),
        (entry(offsets=(8, 0)), b"\0" * 8, None, "invalid offset"),
        (entry(offsets=(-8, 0)), b"\0" * 8, None, "invalid JSON in header"),
        (entry(shape=(-2,)), b"\0" * 8, None, "invalid JSON in header"),
        (entry(shape=(True, 2)), b"\0" * 8, None, "invalid JSON in header"),
        ({**entry(), "v": entry()["w"]}, b"\0" * 8, None, "invalid offset"),
        ({"w": 3}, b"", None, "invalid JSON in header"),
        ({"w": {}}, b"", None, "invalid JSON in header"),
        (b'{"w": 1, "w": 2}', b"", None, "invalid JSON in header"),
        (b"[]", b"", None, "invalid JSON in header"),
        (b"\xff\xfe{}", b"", None, "invalid UTF-8 in header"),
        (b"[" * 99999, b"", None, "invalid JSON in header"),
    ],
)
def test_a_lying_header_is_refused(tmp_path, header, data, length, said):
    file = write_safetensors(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=said) as refusal:
        read_header(file)
    assert "model.safetensors" in str(refusal.value)
    assert "download it again" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.__cause__ is not None


def test_of_two_entries_of_one_name_one_is_taken_and_has_to_fit(tmp_path):
    """As safetensors reads them, and whoever loads the file after."""
    wide, right = (json.dumps(entry(shape=(size,), offsets=(0, 4 * size)))[1:-1] for size in (4, 2))
    file = tmp_path / "model.safetensors"
    assert read_header(write_safetensors(file, f"{{{wide}, {right}}}".encode(), bytes(8)))["w"].shape == (2,)
    with pytest.raises(CheckpointError, match="corrupt"):
        read_header(write_safetensors(file, f"{{{right}, {wide}}}".encode(), bytes(8)))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(make, name, bert_folder):
    (bert_folder / "model.safetensors").unlink()
    make(bert_folder / name)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*no.* file"):
        read_checkpoint(bert_folder)


def test_places_are_those_of_the_bytes(tmp_path):
    sizes = {"a": (2, 3), "empty": (0, 5), "b": (1,), "scalar": ()}
    header, data = header_of(sizes), os.urandom(32)
    file = write_safetensors(tmp_path / "model.safetensors", header, data)
    content = file.read_bytes()
    for name, info in read_header(file).items():
        begin, end = header[name]["data_offsets"]
        assert content[info.begin : info.end] == data[begin:end]
        assert (info.file, info.nbytes) == ("model.safetensors", 4 * math.prod(sizes[name]))


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, size):
    file = write_safetensors(tmp_path / "model.safetensors", header_of(bert_shapes()))
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "model.safetensors"
    for whole in (content, len(content).to_bytes(8, "little") + content):
        file.write_bytes(whole)
        try:
            assert isinstance(read_header(file), dict)
        except CheckpointError:
            continue


def test_shards_are_read_by_the_index(bert_folder):
    shapes = bert_shapes()
    (bert_folder / "model.safetensors").unlink()
    weight_map = {name: f"shard-{i % 2}.safetensors" for i, name in enumerate(shapes)}
    for shard in set(weight_map.values()):
        write_safetensors(bert_folder / shard, header_of({n: s for n, s in shapes.items() if weight_map[n] == shard}))
    index = bert_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    headers = read_checkpoint(bert_folder)
    assert {name: tensor.file for name, tensor in headers.tensors.items()} == weight_map

    index.write_text(json.dumps({"weight_map": {**weight_map, "more": "shard-0.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks the tensor 'more'"):
        read_checkpoint(bert_folder)
    (bert_folder / "shard-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard-1\.safetensors"):
        read_checkpoint(bert_folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/../../b",
        "..\\b",
        "C:\\b",
        "C:b",
        "\\\\host\\b",
        "",
        "a\0b",
        3,
        None,
        [],
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(bert_folder, shard):
    (bert_folder / "model.safetensors").rename(bert_folder.parent / "model.safetensors")
    (bert_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="not inside the folder"):
        read_checkpoint(bert_folder)


def test_links_into_a_cache_are_followed(bert_folder, tmp_path_factory):
    snapshot = tmp_path_factory.mktemp("snapshot")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(bert_folder / name)
    assert read_checkpoint(snapshot).tensors == read_checkpoint(bert_folder).tensors


def test_a_pickle_is_refused_with_the_way_to_allow_it(bert_folder):
    assert not has_only_pickle(bert_folder)
    (bert_folder / "model.safetensors").rename(bert_folder / "pytorch_model.bin")
    assert has_only_pickle(bert_folder)
    with pytest.raises(CheckpointError, match=r"use_safetensors=False.*--allow-pickle"):
        read_checkpoint(bert_folder)


def test_a_folder_without_weights_or_config(bert_folder):
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        read_checkpoint(bert_folder)
    (bert_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_checkpoint(bert_folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_headers(bert_folder / "nothing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 99999])
def test_a_broken_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json' is corrupt"):
        read_config(tmp_path)


def test_every_refusal_is_a_value_error():
    assert issubclass(CheckpointError, ValueError)
    assert issubclass(CheckpointError, LayerDropError)
