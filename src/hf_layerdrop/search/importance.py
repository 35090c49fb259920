"""What strategies share that give every layer an importance: look at the whole model at work, keep the top layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.model_or_trainer import on_device, quiet_eval
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Space
from hf_layerdrop.search.strategies import Proposal
from hf_layerdrop.tasks.task import ROW_NUMBERS

Importances = Mapping[str, Sequence[float]]
# Called with the stack, the layer, what went into and came out of it, a row a token, and which rows are no padding: on
# the device, which is not waited for.
Look = Callable[[str, int, torch.Tensor, torch.Tensor, torch.Tensor], None]
Sums = dict[str, list[torch.Tensor]]


def keep_most_important(importances: Importances, space: Space) -> Proposal:
    """Propose the layers with the highest importance of each stack; of equal ones the earlier.

    Where these are no possible set, the possible one whose importances are the highest in all.
    """
    kept = space.heaviest(importances)
    return Proposal([kept] if kept else [], rounded(importances))


def rounded(importances: Importances) -> dict[str, tuple[float, ...]]:
    """Return importances as plain numbers."""
    return {stack: tuple(float(number) for number in numbers) for stack, numbers in importances.items()}


def look_at_layers(problem: Problem, look: Look) -> None:
    """Run the whole model on all batches, without labels, and show each layer's input and output.

    Raises:
        TaskError: If a stack was given padding alone.
    """
    hooks = []
    tokens: Sums = {stack: [] for stack in problem.cutter.lists}
    masks: dict[str, torch.Tensor | None] = {}

    def show(stack: str, layer: int, _: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if torch.is_tensor(output) else output[0]
        mask = masks.get(stack)
        if mask is None or mask.shape != before.shape[:-1]:
            mask = before.new_ones(before.shape[:-1], dtype=torch.bool)
        chosen = mask.to(before.device).flatten()
        tokens[stack].append(chosen.sum())
        look(stack, layer, before.flatten(0, -2).float(), after.flatten(0, -2).float(), chosen)

    for stack, layers in problem.cutter.lists.items():
        for number, layer in enumerate(layers):
            hooks.append(layer.register_forward_hook(partial(show, stack, number), with_kwargs=True))
    try:
        with torch.no_grad(), quiet_eval(problem.model):
            for batch in inputs_of(problem):
                masks.update(dict.fromkeys(problem.cutter.lists, _mask(batch, "attention_mask")))
                if "decoder" in masks and "encoder" in masks:
                    masks["decoder"] = _mask(batch, "decoder_attention_mask")
                problem.model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if empty_stacks := [stack for stack, counts in tokens.items() if not sum(read(counts))]:
        raise TaskError(
            f"This strategy looks at what layers do to tokens, but the {empty_stacks[0]} was given padding alone (its "
            "attention_mask is 0 everywhere): give data with tokens."
        )
    problem.scorer.note_forwards(sum(problem.space.depths.values()))


def mean_over_tokens(problem: Problem, measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Importances:
    """Return what a function of a layer's input and output gives on average: it gets and returns a row a token."""
    sums: dict[str, dict[int, torch.Tensor]] = {stack: {} for stack in problem.space.depths}

    def look(stack: str, layer: int, before: torch.Tensor, after: torch.Tensor, chosen: torch.Tensor) -> None:
        found = torch.stack([sum_over(chosen, measure(before, after)), chosen.sum()])
        sums[stack][layer] = sums[stack][layer] + found if layer in sums[stack] else found

    look_at_layers(problem, look)
    return {
        stack: [total / count for total, count in read([of_stack[layer] for layer in range(len(of_stack))])]
        for stack, of_stack in sums.items()
    }


def sum_over(chosen: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Add up the chosen ones of the values; what the others are, infinite or no number, does not count."""
    return torch.where(chosen, values, 0.0).double().sum()


def read(values: Sequence[torch.Tensor]) -> Any:
    """Return tensors of one shape, which may lie on several devices, as a list of plain numbers; this waits, once."""
    return torch.stack([value.to(values[0].device) for value in values]).tolist() if values else []


def inputs_of(problem: Problem) -> list[dict[str, Any]]:
    """Return the batches on the model's device, without labels.

    Raises:
        TaskError: If there are none, as with a user's own evaluation.
    """
    batches = [without_labels(batch, problem.model) for batch in problem.batches]
    if not batches:
        raise TaskError("This strategy looks at the model at work, and needs a dataset: pass one beside evaluate=.")
    return batches


def without_labels(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return a batch on the model's device, with the decoder's inputs in place of the labels that they come from."""
    inputs = on_device(batch, model.device)
    labels = inputs.pop("labels", inputs.pop("label", None))
    inputs.pop(ROW_NUMBERS, None)
    if labels is not None and labels.dim() > 1 and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        inputs.setdefault("decoder_input_ids", model.prepare_decoder_input_ids_from_labels(labels))
    return inputs


def _mask(batch: Mapping[str, Any], name: str) -> torch.Tensor | None:
    return batch[name].bool() if torch.is_tensor(batch.get(name)) else None


def empty(problem: Problem) -> dict[str, list[float]]:
    """Return a sum of 0 for every layer."""
    return {stack: [0.0] * depth for stack, depth in problem.space.depths.items()}
