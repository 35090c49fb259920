"""Rows that drop their own layers, recomputed by checkpoints, compiled layer by layer, and resumed by Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from conftest import assert_same_tensors, batch_for, build, gradients_of, layers_of, loss_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_step
from hf_layerdrop.architectures.stacks import find_stacks
from row_models import family, output_of
from rows import arguments, examples

HEAD = "BertForSequenceClassification"


def by_row(model: nn.Module, rate: object = 0.5) -> nn.Module:
    return inject_layerdrop(model, LayerDropConfig(rate, seed=1, granularity="row")).train()


def wide_batch(rows: int = 6) -> dict[str, torch.Tensor]:
    batches = [batch_for(HEAD, seed) for seed in range(2)]
    return {name: torch.cat([batch[name] for batch in batches])[:rows] for name in batches[0]}


# --- recomputation ------------------------------------------------------------------------------------------------


def by_transformers(model: nn.Module, reentrant: bool) -> object:
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return loss_of


def around_each_layer(model: nn.Module, reentrant: bool) -> object:
    implementation = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    for stack in find_stacks(model).values():
        layers = stack.layers(model)
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer, checkpoint_impl=implementation)
    model.config.use_cache = False
    model.enable_input_require_grads()
    return loss_of


def around_the_model(model: nn.Module, reentrant: bool) -> object:
    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        anchor = torch.ones((), requires_grad=True)
        return checkpoint(lambda one: loss_of(model, batch) * one, anchor, use_reentrant=reentrant)

    return loss


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("way", [by_transformers, around_each_layer, around_the_model], ids=lambda way: way.__name__)
def test_a_recomputed_layer_runs_on_the_rows_that_it_ran_on(way: object, reentrant: bool, head: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = by_row(build(head).double(), (0.5, 0.3, 1.0, 0.5))
        loss = way(model, reentrant) if checkpointed else loss_of
        found = {}
        for step in range(2):
            set_step(model, step)
            for name, gradient in gradients_of(
                model, loss(model, batch_for(head)), loss(model, batch_for(head))
            ).items():
                found[f"{step} {name.replace('_checkpoint_wrapped_module.', '')}"] = gradient
        counts = {
            name: (draw.forwards, round(draw.layers_run, 6)) for name, draw in layerdrop_state(model).draws.items()
        }
        gradients.append((found, counts))
    assert gradients[0][1] == gradients[1][1]
    assert_same_tensors(gradients[1][0], gradients[0][0], atol=1e-9)


# --- compilation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5"])
def test_layers_that_are_compiled_one_by_one_make_two_graphs_a_shape_of_block_at_most(model_type: str) -> None:
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("eager")
    model, batch = family(model_type, rows=6)
    model.config.use_cache = False
    by_row(model)
    expected = [(set_step(model, step), output_of(model, batch))[1] for step in range(3)]
    for layers in layers_of(model).values():
        for layer in layers:
            layer.compile(backend=graphs)
    counts = []
    for step in range(12):
        set_step(model, step)
        output = output_of(model, batch)
        output.sum().backward()
        counts.append(graphs.frame_count)
        if step < 3:
            assert torch.allclose(output, expected[step], atol=1e-9)
    assert counts[2] == counts[-1] <= 2 * len(layers_of(model))


def test_a_whole_model_that_is_compiled_gives_what_it_gives_otherwise() -> None:
    torch.compiler.reset()
    model, batch = by_row(build(HEAD)), wide_batch()
    expected = [(set_step(model, step), loss_of(model, batch))[1] for step in range(3)]
    compiled = torch.compile(model, backend="eager")
    for step in range(3):
        set_step(model, step)
        assert torch.allclose(loss_of(compiled, batch), expected[step], atol=1e-5)
    torch.compiler.reset()


# --- Trainer ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: str, **changes: object) -> tuple[Trainer, nn.Module]:
        model = by_row(build(HEAD))
        settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 2, "seed": 5}
        trainer = Trainer(model, arguments(tmp_path / folder, max_steps=4, **settings), train_dataset=examples(16))
        trainer.train(**changes)
        return trainer, model

    trainer, whole = run("whole")
    logged = [entry for entry in trainer.state.log_history if "layerdrop_layers_used" in entry]
    _, resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_tensors(dict(resumed.named_parameters()), dict(whole.named_parameters()))
    assert all(entry["layerdrop_layers_used"] == 2 for entry in logged)
