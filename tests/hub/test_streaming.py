"""Pruning by copying bytes writes what pruning in memory writes, to the byte, and never holds the model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from conftest import assert_same_tensors, batch_for, build, cut_by_hand, keep_all_stacks, output_of
from hf_layerdrop import save_pruned
from hf_layerdrop.checkpoints import weight_files
from hf_layerdrop.checkpoints.lazy_tensors import LazyTensor
from hf_layerdrop.checkpoints.weight_files import StoredTensor, find_runs, read_stored, stream_local, write_weights
from hf_layerdrop.hub import save, streaming
from hf_layerdrop.models.auto import load_checkpoint

KEPT = [1, 3]


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prune(source, target, keep_layers, **settings):
    return save_pruned(source, target, keep_layers=keep_layers, tokenizer=False, **settings)


def no_streaming(*_):
    return None


def both_ways(source, tmp_path, keep_layers, monkeypatch):
    """Prune by copying bytes, with weights that cannot be read any other way, and in memory."""
    with monkeypatch.context() as patch:
        patch.setattr(LazyTensor, "__getitem__", None)
        streamed = files_in(prune(source, tmp_path / "new" / "small", keep_layers))
    with monkeypatch.context() as patch:
        patch.setattr(save, "find_streamed", no_streaming)
        return streamed, files_in(prune(source, tmp_path / "old" / "small", keep_layers))


@pytest.mark.parametrize("shard", ["1GB", "8KB"], ids=["one file", "shards"])
def test_streaming_writes_the_same_bytes(any_head, shard, tmp_path, monkeypatch):
    source = build(any_head)
    source.save_pretrained(tmp_path / "source", max_shard_size=shard)
    kept = keep_all_stacks(source, KEPT)
    streamed, in_memory = both_ways(tmp_path / "source", tmp_path, kept, monkeypatch)
    assert streamed == in_memory
    assert json.loads(streamed["config.json"])["hf_layerdrop"]["keep_layers"] == kept
    assert len(streamed["model.safetensors"]) < 0.8 * sum(
        path.stat().st_size for path in (tmp_path / "source").glob("*.safetensors")
    )


def test_streamed_models_compute_what_the_cut_model_computes(tmp_path):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "small", KEPT)
    prune(tmp_path / "source", tmp_path / "other", [0, 2])
    batch = batch_for("BertForSequenceClassification")
    found, other = (output_of(type(source).from_pretrained(tmp_path / name), batch) for name in ("small", "other"))
    expected = output_of(load_checkpoint(tmp_path / "source", keep_layers=KEPT), batch)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, other, atol=1e-3)


def test_shards_are_written_as_save_pretrained_writes_them(tmp_path, monkeypatch):
    source = build("BartForConditionalGeneration")
    source.save_pretrained(tmp_path / "source")
    monkeypatch.setattr(weight_files, "_LARGEST_FILE", "20KB")
    prune(tmp_path / "source", tmp_path / "small", {"encoder": KEPT})
    model = load_checkpoint(tmp_path / "source", keep_layers={"encoder": KEPT})
    model.save_pretrained(tmp_path / "expected", max_shard_size="20KB")
    found = {name: content for name, content in files_in(tmp_path / "small").items() if "model" in name}
    expected = {name: content for name, content in files_in(tmp_path / "expected").items() if "model" in name}
    assert len(found) > 3
    assert found == expected


def rename_legacy(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def store_in_half(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def lose_the_head(folder):
    weights = load_file(folder / "model.safetensors")
    body = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(body, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("change", [store_in_half, lose_the_head])
def test_weights_that_the_model_class_converts_are_cut_in_memory_and_said_to_be(change, tmp_path, caplog):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "source")
    change(tmp_path / "source")
    with caplog.at_level(logging.WARNING):
        prune(tmp_path / "source", tmp_path / "small", KEPT)
    assert "is cut in memory, because" in caplog.text
    again = type(source).from_pretrained(tmp_path / "small")
    expected = load_checkpoint(tmp_path / "source", keep_layers=KEPT).state_dict()
    for name, value in again.state_dict().items():
        assert (change is lose_the_head and "classifier" in name) or torch.equal(value, expected[name])


def test_legacy_names_are_written_as_they_are_in_memory(tmp_path, monkeypatch):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "source")
    rename_legacy(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(save, "find_streamed", no_streaming)
        in_memory = files_in(prune(tmp_path / "source", tmp_path / "old" / "small", KEPT))
    assert files_in(prune(tmp_path / "source", tmp_path / "new" / "small", KEPT)) == in_memory
    again = type(source).from_pretrained(tmp_path / "new" / "small")
    assert_same_tensors(again.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())


def test_a_checkpoint_with_tensors_that_nobody_wants_is_streamed_without_them(tmp_path, monkeypatch):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "source")
    weights = load_file(tmp_path / "source/model.safetensors")
    weights["cls.predictions.bias"] = torch.ones(60)
    save_file(weights, tmp_path / "source/model.safetensors", {"format": "pt"})
    streamed, in_memory = both_ways(tmp_path / "source", tmp_path, KEPT, monkeypatch)
    assert streamed == in_memory


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    build("BertForSequenceClassification").save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()

    def full(*_):
        yield b"1"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming, "stream_local", full)
    with pytest.raises(OSError, match="No space"):
        prune(tmp_path / "source", tmp_path / "out/small", KEPT)
    assert not list((tmp_path / "out").iterdir())


def test_runs_join_neighbours_and_small_gaps():
    places = {"a": (0, 10), "b": (10, 20), "c": (22, 30), "d": (90, 99)}
    tensors = {name: StoredTensor("U8", (end - begin,), "f", begin, end) for name, (begin, end) in places.items()}
    tensors["e"] = StoredTensor("U8", (9,), "g", 99, 108)
    assert [(run.begin, run.end) for run in find_runs(tensors)] == [(0, 20), (22, 30), (90, 99), (99, 108)]
    assert [(run.begin, run.end) for run in find_runs(tensors, spare=2)] == [(0, 30), (90, 99), (99, 108)]
    assert [(run.begin, run.end) for run in find_runs(tensors, spare=62)] == [(0, 99), (99, 108)]


def test_tensors_are_copied_whatever_the_size_of_the_chunks(tmp_path, monkeypatch):
    source = {f"t{i}": torch.randn(i + 1, 7) for i in range(9)} | {"empty": torch.zeros(0, 2)}
    save_file(source, tmp_path / "w.safetensors")
    monkeypatch.setattr(weight_files, "CHUNK", 33)
    stored = read_stored(tmp_path / "w.safetensors")
    wanted = {f"new.{name}": stored[name] for name in ("t8", "t1", "t2", "t5", "empty")}
    write_weights(tmp_path, wanted, stream_local, spare=40)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], source[name.removeprefix("new.")]) for name in found)


def test_pruning_takes_little_memory(tmp_path):
    """Of a checkpoint of 200 MB; the process has what torch and transformers take, and some chunks."""
    model = build("BertModel")
    model.save_pretrained(tmp_path / "source")
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 60, "num_hidden_layers": 4}
    config = json.loads((tmp_path / "source/config.json").read_text()) | wide
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {
            name: list(value.shape) for name, value in BertModel(type(model.config)(**config)).state_dict().items()
        }
    write_sparse(tmp_path / "source/model.safetensors", shapes)
    size = (tmp_path / "source/model.safetensors").stat().st_size
    assert size > 200e6
    code = (
        "import resource, sys\n"
        "from hf_layerdrop import load_checkpoint, save_pruned\n"
        "import hf_layerdrop.hub, hf_layerdrop.models.auto\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "save_pruned(sys.argv[1], sys.argv[2], keep_layers=[0, 1, 3], tokenizer=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "source"), str(tmp_path / "small")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 0.25 * size
    assert (tmp_path / "small/model.safetensors").stat().st_size > 0.7 * size


def write_sparse(path: Path, shapes) -> None:
    """Write a checkpoint of zeros that takes no space on the disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
