"""What the tests of integrations share: a library that may be missing, and rows to train on."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

ROWS = [{"input_ids": [2, 7 + row, 11 + 3 * row, 40 - row, 3], "labels": row % 2} for row in range(8)]


def needed(name: str) -> Any:
    """Import a library, or skip the module without it; CI installs all of them, so there a missing one is an error."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'hf-layerdrop[integrations]'")


def training_arguments(folder: Any, cls: Any = None, **changes: Any) -> Any:
    """Return the arguments of a training of a few steps, which writes nothing but what is saved on purpose."""
    from transformers import TrainingArguments

    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return (cls or TrainingArguments)(**{**settings, **changes})


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of tensors that differ."""
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
