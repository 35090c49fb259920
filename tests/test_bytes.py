"""``keep_layers`` reads what it keeps and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors

from conftest import build
from hf_layerdrop import loading
from hf_layerdrop.headers import read_checkpoint
from hf_layerdrop.modeling import load_checkpoint


class RecordedSlice:
    """A slice of a safetensors file that notes when its bytes are asked for."""

    def __init__(self, name: str, part: Any, asked: list[str]) -> None:
        self._name, self._part, self._asked = name, part, asked

    def __getitem__(self, index: Any) -> Any:
        self._asked.append(self._name)
        return self._part[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class RecordedFile:
    """A safetensors file whose slices are recorded; whole tensors cannot be read past them."""

    def __init__(self, path: str, asked: list[str]) -> None:
        self._file, self._asked = safetensors.safe_open(path, framework="pt"), asked

    def __enter__(self) -> RecordedFile:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_slice(self, name: str) -> RecordedSlice:
        return RecordedSlice(name, self._file.get_slice(name), self._asked)


@pytest.mark.parametrize("shard", ["1MB", "12KB"], ids=["one file", "shards"])
def test_requested_bytes_are_those_of_the_kept_tensors(
    head: str, shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(head).save_pretrained(tmp_path, max_shard_size=shard)
    headers = read_checkpoint(tmp_path)
    stacks = [stack.name for stack in headers.stacks()]
    asked: list[str] = []
    monkeypatch.setattr(loading, "safe_open", lambda path, framework: RecordedFile(path, asked))
    model = load_checkpoint(tmp_path, keep_layers={stack: [1, 3] for stack in stacks})
    assert asked, "nothing was read through the recorder"
    requested = sum(headers.tensors[name].nbytes for name in asked)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in set(model.state_dict(keep_vars=True).values()))
    assert abs(requested - kept) <= 0.02 * kept
    assert requested < 0.8 * sum(info.nbytes for info in headers.tensors.values())
    dropped = [name for name in asked if any(f".{layer}." in name for layer in (0, 2)) and "layer" in name]
    assert not dropped
