"""``keep_layers`` reads what it keeps and nothing else."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from conftest import assert_same_tensors, build, cut_by_hand
from hf_layerdrop.checkpoints.headers import read_checkpoint
from hf_layerdrop.checkpoints.stored_model import find_stored_model
from hf_layerdrop.checkpoints.weight_slices import WeightSlice, open_slices
from hf_layerdrop.errors import CheckpointError
from hf_layerdrop.models.auto import load_checkpoint

KEPT = [1, 3]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tensors of files that were read, in part or whole."""
    tensors: list[Any] = []
    read = WeightSlice.__getitem__

    def recorded(part: WeightSlice, index: Any) -> torch.Tensor:
        tensors.append(part.info)
        return read(part, index)

    monkeypatch.setattr(WeightSlice, "__getitem__", recorded)
    return tensors


@pytest.mark.parametrize("shard", ["1MB", "12KB"], ids=["one file", "shards"])
def test_requested_bytes_are_those_of_the_kept_tensors(head: str, shard: str, tmp_path: Path, asked: list[Any]) -> None:
    build(head).save_pretrained(tmp_path, max_shard_size=shard)
    headers = read_checkpoint(tmp_path)
    model = load_checkpoint(tmp_path, keep_layers=dict.fromkeys(find_stored_model(headers).depths, KEPT))
    assert asked, "nothing was read through the recorder"
    requested = sum(tensor.nbytes for tensor in asked)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in set(model.state_dict(keep_vars=True).values()))
    assert abs(requested - kept) <= 0.02 * kept
    assert requested < 0.8 * sum(info.nbytes for info in headers.tensors.values())
    places = {(Path(tensor.file).name, tensor.nbytes) for tensor in asked}
    assert len(places) > 1


def read_from_device() -> int:
    counters = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in counters if line.startswith("read_bytes"))


def forget(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count bytes from devices")
def test_bytes_from_the_device_are_those_of_the_kept_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 2000}
    BertModel(BertConfig(num_hidden_layers=12, **shape)).save_pretrained(tmp_path)
    kept_layers = [0, 3, 6, 11]
    load_checkpoint(tmp_path, keep_layers=kept_layers)  # imports
    forget(tmp_path)
    before = read_from_device()
    model = load_checkpoint(tmp_path, keep_layers=kept_layers)
    for weight in model.parameters():
        weight.sum()
    read = read_from_device() - before
    if not read:
        pytest.skip("this file system has no device, or keeps its cache")
    kept = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert kept * 0.9 < read < 1.06 * kept  # pages are whole, and a header is read ahead; of larger files it is less


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_every_dtype_is_read_as_safetensors_reads_it(dtype: torch.dtype, shift: int, tmp_path: Path) -> None:
    values = torch.randint(0, 2, (5, 7)).to(dtype)
    save_file({"a": values, "b": torch.zeros(0, 3), "c": torch.tensor(3, dtype=torch.int64)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * shift
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with ExitStack() as files:
        tensors = open_slices(str(tmp_path / "w"), files)
        found = {name: tensor[...] for name, tensor in tensors.items()}
        rows = tensors["a"][1:3]
        assert tensors["a"].get_shape() == [5, 7]
    for name, tensor in load_file(tmp_path / "w").items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found["a"].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(rows.view(torch.uint8), values[1:3].contiguous().view(torch.uint8))
    assert found["c"] == 3


def test_training_what_was_loaded_does_not_change_the_file(tmp_path: Path) -> None:
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_checkpoint(tmp_path, keep_layers=KEPT)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save_pretrained(tmp_path)  # over the file that is mapped
    again = BertModel.from_pretrained(tmp_path)
    expected = {name: value + 1 for name, value in cut_by_hand(source, {"encoder": KEPT}).bert.named_parameters()}
    assert_same_tensors(
        {name: dict(again.named_parameters())[name] for name in expected if "pooler" not in name},
        {name: value for name, value in expected.items() if "pooler" not in name},
    )


def test_a_file_that_lies_about_a_tensor_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content[:-4])
    with ExitStack() as files, pytest.raises(CheckpointError, match="not fully covered"):
        open_slices(str(tmp_path / "w"), files)
