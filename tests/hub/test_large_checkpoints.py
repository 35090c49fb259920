"""Pruning writes weights as they lie in their files, and never holds them: they are mapped, and written from there."""

from __future__ import annotations

import json
import resource
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertModel

import warm
from conftest import assert_same_tensors, build, cut_by_hand
from hf_layerdrop import save_pruned
from hf_layerdrop.models.auto import load_checkpoint

KEPT = [1, 3]


def prune(source, target, keep_layers, **settings):
    return save_pruned(source, target, keep_layers=keep_layers, tokenizer=False, **settings)


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


@pytest.mark.parametrize("change", [rename_legacy, store_in_half, lose_the_head])
def test_what_is_written_is_what_is_loaded(change, tmp_path):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "source")
    change(tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "small", KEPT)
    expected = load_checkpoint(tmp_path / "source", keep_layers=KEPT)
    again = type(expected).from_pretrained(tmp_path / "small")
    assert type(expected) is (BertModel if change is lose_the_head else type(source))
    again = again.state_dict()
    assert_same_tensors(again, expected.state_dict())
    if change is rename_legacy:
        assert_same_tensors(again, cut_by_hand(source, {"encoder": KEPT}).state_dict())


def test_tensors_of_another_class_are_kept(tmp_path):
    """They were once left out, and with them the pooler of a model that calls itself a language model."""
    build("BertForSequenceClassification").save_pretrained(tmp_path / "source")
    weights = load_file(tmp_path / "source/model.safetensors")
    weights["cls.predictions.bias"] = torch.ones(60)
    save_file(weights, tmp_path / "source/model.safetensors", {"format": "pt"})
    prune(tmp_path / "source", tmp_path / "small", KEPT)
    assert torch.equal(load_file(tmp_path / "small/model.safetensors")["cls.predictions.bias"], torch.ones(60))


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    build("BertForSequenceClassification").save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as of a disk with so much space
    try:
        with pytest.raises(SafetensorError, match="File too large"):
            prune(tmp_path / "source", tmp_path / "out/small", KEPT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell own memory from mapped")
def test_pruning_takes_little_memory_of_its_own(tmp_path):
    """Of a checkpoint of 200 MB; the process has what it takes for a tiny one, and some more."""
    build("BertModel").save_pretrained(tmp_path / "tiny")
    build("BertModel").save_pretrained(tmp_path / "source")
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 60, "num_hidden_layers": 4}
    config = json.loads((tmp_path / "source/config.json").read_text()) | wide
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = BertModel(BertModel.config_class(**config))
    write_sparse(
        tmp_path / "source/model.safetensors", {name: list(value.shape) for name, value in model.state_dict().items()}
    )
    size = (tmp_path / "source/model.safetensors").stat().st_size
    assert size > 200e6
    assert own_memory(tmp_path / "source", tmp_path / "small") < own_memory(tmp_path / "tiny", tmp_path / "t") + 50e6
    assert (tmp_path / "small/model.safetensors").stat().st_size > 0.7 * size


def own_memory(source: Path, target: Path) -> int:
    """Prune in a process of its own; return the most bytes that it had beside mapped files."""
    process = warm.start(prune, source, target, [0, 1, 3])
    most = 0
    while process.is_alive():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            parts = [line.split()[1] for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem"))]
            most = max(most, 1024 * sum(map(int, parts)))
        time.sleep(0.005)
    assert process.exitcode == 0
    return most


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
