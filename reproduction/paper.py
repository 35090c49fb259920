"""The paper's size without its hours: shapes, steps, parameters and memory of each run, on the meta device."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.pruning.prune import Cutter, count_parameters
from hf_layerdrop.samplers.keep_layers import parse_keep_layers
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.training.from_config import special_fields
from reproduction.plan import Run
from reproduction.shared_inputs import described
from reproduction.study import WHOLE

# Weights, gradients and the two moments of Adam, in fp32; with bf16 only the activations are halved.
BYTES_A_PARAMETER = 16
# Activations that a layer leaves for its backward pass, in multiples of its input: what is common in estimates of
# transformers with an inner width of 4, without the attention weights, which fused kernels do not keep.
INPUTS_KEPT_A_LAYER = 34 / 2
HEADS_OVER_VOCABULARY = ("MaskedLM", "CausalLM", "Seq2SeqLM")


@dataclass(frozen=True)
class Estimate:
    """What a run would be.

    Attributes:
        run: The run.
        parameters: Of the model that is trained.
        layer_parameters: Of the last layer, by stack.
        tokens_a_step: Input tokens of an optimizer step of one process.
        gigabytes: Of weights, gradients, optimizer and activations of one process; an estimate, nothing was run.
    """

    run: Run
    parameters: int
    layer_parameters: dict[str, int]
    tokens_a_step: int
    gigabytes: float


@dataclass(frozen=True)
class _Shape:
    """What the models of a study are."""

    cuts: dict[str, int]
    layer_parameters: dict[str, int]
    layers: dict[str, int]
    width: int


def estimate_runs(runs: Sequence[Run]) -> list[Estimate]:
    """Build the model of each study without memory, cut it everywhere it is to be cut, and count.

    Raises:
        LayerDropError: One of its kinds, if a setting does not fit.
    """
    shapes = {run.study.name: _shape(run) for run in {run.study.name: run for run in runs}.values()}
    return [_estimate(run, shapes[run.study.name]) for run in runs]


def _estimate(run: Run, shape: _Shape) -> Estimate:
    training = run.size.training
    rows = training["per_device_train_batch_size"]
    length = (run.size.max_length or 0) + (run.size.max_target_length or 0)
    parameters = shape.cuts[run.arm.cut]
    logits = run.vocab_size if load_task(run.study.task).head in HEADS_OVER_VOCABULARY else 0
    kept_a_token = shape.layers[run.arm.cut] * shape.width * INPUTS_KEPT_A_LAYER + logits
    activations = rows * length * kept_a_token * (2 if training.get("bf16") else 4)
    return Estimate(
        run,
        parameters,
        shape.layer_parameters,
        rows * length * training.get("gradient_accumulation_steps", 1),
        (parameters * BYTES_A_PARAMETER + activations) / 1e9,
    )


def launch_line(experiment: str, runs: Sequence[Run], data_dir: Path | None) -> str:
    """Return the command that trains on GPUs."""
    words = ["accelerate", "launch", "--module", "reproduction", experiment]
    words += ["--size", runs[0].size_name, "--data-dir", str(data_dir or "DATA"), "--output", "runs/reproduce"]
    return shlex.join(words)


def _model(run: Run) -> PreTrainedModel:
    described_model, task = described(run), load_task(run.study.task)
    no_token = dict.fromkeys(special_fields(described_model.model_type), 0)  # nothing here runs
    fields = {**no_token, **described_model.fields, "vocab_size": run.vocab_size, **task.kind.settings(task)}
    config = AutoConfig.for_model(described_model.model_type, **fields)
    with torch.device("meta"):
        return task.model_class.from_config(config, layerdrop=0.0)


def _shape(run: Run) -> _Shape:
    whole = _model(run)
    depths, parameters = depths_of(whole), count_parameters(whole)
    kept = {name: parse_keep_layers(spec, depths) for name, spec in run.size.cuts.items()}
    cutter = Cutter(whole)
    cuts = {name: parameters if name == WHOLE else _cut(cutter, whole, layers) for name, layers in kept.items()}
    all_but_one = {stack: parse_keep_layers({stack: range(depth - 1)}, depths) for stack, depth in depths.items()}
    layers = {stack: parameters - _cut(cutter, whole, rest) for stack, rest in all_but_one.items()}
    return _Shape(
        cuts,
        layers,
        {name: sum(map(len, layers.values())) for name, layers in kept.items()},
        whole.config.hidden_size,
    )


def _cut(cutter: Cutter, whole: PreTrainedModel, kept: Mapping[str, tuple[int, ...]]) -> int:
    """Return the parameters of what is left."""
    with cutter.sub_network(kept):
        return count_parameters(whole)
