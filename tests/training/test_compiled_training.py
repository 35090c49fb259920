"""Trainer with ``torch_compile=True``: it trains as without, and the graphs are all there after a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, Trainer, TrainerCallback

from conftest import build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state
from hf_layerdrop.injection import compiling
from integrations import training_arguments

HEAD = "BertForSequenceClassification"
STEPS, BATCH = 30, 8
REGIONAL = "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
GRAPHS = {"rate 0": 2, "skip": 5, "mask": 2}


@pytest.fixture(autouse=True)
def _a_fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    compiling.warn_of_whole_model.cache_clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


class Watch(TrainerCallback):
    """Note how many graphs there are after each step, and how many layers have run in it."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.layers: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: PreTrainedModel, **kwargs: Any) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])
        (draw,) = layerdrop_state(model).draws.values()
        self.layers.append(draw.layer_forwards)


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(5, 60, (8,), generator=generator), "labels": number % 2}
        for number in range(STEPS * BATCH)
    ]


def trained(
    folder: Path, *, rate: float = 0.5, execution: str = "skip", **changes: Any
) -> tuple[PreTrainedModel, Watch]:
    model, watch = build(HEAD), Watch()
    inject_layerdrop(model, LayerDropConfig(rate, seed=1, execution=execution))
    arguments = training_arguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.1,
        **changes,
    )
    Trainer(model, arguments, train_dataset=rows(), callbacks=[watch]).train()
    return model, watch


def apart(model: PreTrainedModel, other: PreTrainedModel) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


def assert_trains_as_without(folder: Path, what: str, backend: str, tolerance: float) -> None:
    how: dict[str, Any] = {"rate": 0.0} if what == "rate 0" else {"execution": what}
    plain, _ = trained(folder, **how)
    compiled, watch = trained(folder, **how, torch_compile=True, torch_compile_backend=backend)
    assert apart(compiled, plain) < tolerance
    assert apart(plain, build(HEAD)) > 1e-2
    assert watch.graphs[2:] == [GRAPHS[what]] * (STEPS - 2)
    steps = {after - before for before, after in zip(watch.layers, watch.layers[1:], strict=False)}
    assert len(steps) > 2 or what == "rate 0"


@pytest.mark.parametrize("what", GRAPHS)
def test_a_compiled_trainer_ends_where_one_without_ends_and_makes_no_graph_after_the_third_step(
    what: str, tmp_path: Path
) -> None:
    assert_trains_as_without(tmp_path, what, "eager", 1e-5)


@pytest.mark.slow  # a minute, for a C++ compiler
def test_inductor_in_trainer_ends_where_one_without_ends(tmp_path: Path) -> None:
    assert_trains_as_without(tmp_path, "skip", "inductor", 1e-4)


def test_a_compiled_trainer_with_regional_compilation_compiles_one_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _ = trained(tmp_path)
    monkeypatch.setenv(REGIONAL, "true")
    compiled, watch = trained(tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert apart(compiled, plain) < 1e-5
    assert watch.graphs == [5] * STEPS  # one of the layers, and four of what stands around them
    assert "regional compilation" not in caplog.text  # which the warning recommends
