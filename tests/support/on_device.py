"""The device that tests marked gpu run on: the first CUDA device, or what LAYERDROP_TEST_DEVICE names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import distributed

from ranks import as_by_torchrun, free_port

DEVICE = os.environ.get("LAYERDROP_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")


needs_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DEVICE, reason="needs a CUDA device; LAYERDROP_TEST_DEVICE=cpu runs it on the CPU"),
]


@pytest.fixture
def device() -> torch.device:
    """The device."""
    return torch.device(DEVICE)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, gloo elsewhere."""
    for name, value in as_by_torchrun(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    distributed.init_process_group("nccl" if DEVICE.startswith("cuda") else "gloo")
    yield
    distributed.destroy_process_group()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Algorithms that give the same bits each time."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
