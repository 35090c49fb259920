"""DeepSpeed's ZeRO-3 on two CPU processes: no stale gradients, no gathers for dropped layers; needs deepspeed."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from conftest import build
from hf_layerdrop import compat
from hf_layerdrop.injection.ranks.zero3 import clear_stale_gradients
from ranks import SUPPORT, run_on_two_ranks

WORKER = SUPPORT / "zero3_worker.py"
USUAL = {"rate": 0.5, "optimizer": "adamw", "micro_steps": 2, "prefetch": 0, "offload": False, "checkpointing": "none"}
CASES = {
    "sgd": {"optimizer": "sgd"},
    "adamw": {},
    "gradient checkpointing": {"checkpointing": "plain"},
    "prefetching": {"prefetch": 50_000_000},
    "offloaded": {"offload": True, "micro_steps": 1},
    "none dropped": {"rate": 0.0},
    "all dropped": {"rate": 1.0},
}
REFUSED = {"offloaded, micro-steps": {"offload": True}}
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """What rank 0 says, by case."""
    cases = [{"name": name, **USUAL, **changes} for name, changes in {**CASES, **REFUSED}.items()]
    printed = run_on_two_ranks(WORKER, json.dumps(cases))
    return _said(printed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What rank 0 says of Trainer, by execution."""
    script = WORKER.with_name("zero3_trainer_worker.py")
    return _said(run_on_two_ranks(script, str(tmp_path_factory.mktemp("runs"))))


def _said(printed: str) -> dict[str, dict]:
    said = [json.loads(line) for line in printed.splitlines() if line.startswith('{"case"')]
    return {entry["case"]: entry for entry in said}


@needs_deepspeed
@pytest.mark.parametrize("case", CASES)
def test_zero3_ends_like_one_process_that_steps_dropped_layers_with_zeros(found: dict, case: str) -> None:
    assert found[case]["distance"] < 1e-5  # with a stale gradient it is 0.19 by SGD


@needs_deepspeed
def test_zero3_gathers_no_dropped_layer(found: dict) -> None:
    none_dropped, half_dropped, all_dropped = (
        found[case]["gathers"] for case in ("none dropped", "adamw", "all dropped")
    )
    assert none_dropped > half_dropped > all_dropped


@needs_deepspeed
def test_what_deepspeed_loses_is_refused(found: dict) -> None:
    assert "offload_optimizer" in found["offloaded, micro-steps"]["error"]


class Optimizer:
    """The part of DeepSpeed's optimizer that is used, for where DeepSpeed is not installed."""

    offload_optimizer = False

    def __init__(self, micro_step_id: int) -> None:
        self.micro_step_id = micro_step_id
        self.cleared: list[torch.Tensor] = []

    def set_local_grad_for_param(self, value: torch.Tensor, weight: torch.Tensor) -> None:
        assert not value.any()
        assert value.shape == weight.ds_tensor.shape
        self.cleared.append(weight)


@pytest.mark.parametrize("micro_step", [0, 1])
def test_gradients_are_cleared_in_the_first_micro_step_alone(monkeypatch: pytest.MonkeyPatch, micro_step: int) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setattr(
        compat, "ZERO_OPTIMIZER", SimpleNamespace(name="_z3_optimizer")
    )  # which is looked up in DeepSpeed
    layer, optimizer = build("BertModel").encoder.layer[0], Optimizer(micro_step)
    weights = list(layer.parameters())
    for weight in weights:
        weight.ds_id, weight._z3_optimizer, weight.ds_tensor = 0, optimizer, torch.ones(3)
    weights[0].requires_grad_(False)
    clear_stale_gradients(layer)
    assert len(optimizer.cleared) == (len(weights) - 1 if micro_step == 0 else 0)


@needs_deepspeed
@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_trainer_weighs_unequal_batches_as_one_process_does(trained: dict[str, dict], execution: str) -> None:
    assert trained[execution]["wrapped"] == "DeepSpeedEngine"
    assert trained[execution]["ignores"]
    assert trained[execution]["distance"] < 1e-5
    assert trained[execution]["to means"] > 1e-3
