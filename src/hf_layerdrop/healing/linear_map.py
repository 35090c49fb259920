"""Put a linear map in the place of removed layers, merged into a weight that stays: no training, no new weight.

The idea is ReplaceMe's (arXiv 2505.02819): between two kept layers, a matrix stands for those that are gone. It is
applied to what the last kept layer's feed-forward part adds, so that it is a product with its output projection, and
the residual stream beside it is left as it is. So the result is a plain checkpoint of fewer layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.distillation.positions import real_tokens
from hf_layerdrop.errors import HealingError
from hf_layerdrop.evaluation.model_or_trainer import Batches, Collator, Data, as_batches, on_device, quiet_eval, steady
from hf_layerdrop.evaluation.random_streams import RandomStreams
from hf_layerdrop.healing.config import HealingConfig
from hf_layerdrop.healing.least_squares import NormalEquations
from hf_layerdrop.healing.projection import Projection, find_projection, first_tensor, recorded_calls
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers


@dataclass(frozen=True)
class RemovedRun:
    """Neighbouring layers that a cut took out, behind one that stays.

    Attributes:
        stack: Name of the stack.
        layer: The layer before them, in the numbering of the cut model.
        removed: They, in the numbering of the whole one.
    """

    stack: str
    layer: int
    removed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """What stands for a removed run: with o from the output projection, ``o @ matrix + shift`` is added to it.

    Attributes:
        run: The run.
        matrix: Width x width, float64.
        shift: A constant; None where the projection has no bias that could take it.
        explained: The share that it gives of the square of what is missing, on the rows that it was fitted on.
        tokens: On how many positions that was; padding is none.
    """

    run: RemovedRun
    matrix: torch.Tensor
    shift: torch.Tensor | None
    explained: float
    tokens: int


@dataclass(frozen=True, eq=False)
class MergedMaps:
    """The maps that were merged into a cut model, and how to take them out again.

    Attributes:
        maps: One a removed run, in the order of the layers.
        unmapped: Removed layers by stack before which no layer is kept, so that nothing can take a map for them.
    """

    maps: tuple[LinearMap, ...]
    unmapped: Mapping[str, tuple[int, ...]]
    before: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the weights back, bit for bit."""
        with torch.no_grad():
            for weight, values in reversed(self.before):
                weight.copy_(values)
        self.before.clear()


def merge_linear_maps(
    model: PreTrainedModel,
    whole: PreTrainedModel,
    data: Data,
    *,
    keep_layers: KeepLayers | None = None,
    ridge: float = HealingConfig.ridge,
    batch_size: int = 32,
    collator: Collator | None = None,
) -> MergedMaps:
    """Fit a linear map over each run of layers that a cut took out, and merge it into the cut model, in place.

    The maps are fitted one after the other, from the first layers to the last, each on what the cut model gives with
    those before it, by least squares on the hidden states that ``whole`` has after the removed run (arXiv 2505.02819).
    In a pre-norm block that is what the removed layers add. A post-norm block ends in a LayerNorm: there the sum before
    it is fitted, to the direction that the last removed layer's sum has, and the LayerNorm takes that layer's own
    weight and bias. The sums of squares are kept, in float64, and no rows. No random stream is moved.

    Args:
        model: The cut model.
        whole: The model before the cut; it stays as it is.
        data: Rows without need of labels, a few hundred: batches, or a data set of examples.
        keep_layers: The layers of ``whole`` that ``model`` has; left out, what the cut noted in its config.
        ridge: What it costs that a map is not 0, which is the plain cut, against the mean square of what it is given.
        batch_size: Examples a batch, for a data set of examples.
        collator: Makes a batch of examples.

    Raises:
        HealingError: If nothing was cut, the two models do not fit, no rows are given, or a block adds to its input in
            a way that takes no map; nothing is changed then.
    """
    if not ridge > 0:
        raise HealingError(
            f"ridge is {ridge!r}; it must be above 0, such as {HealingConfig.ridge}: a larger one is nearer to the cut."
        )
    kept = kept_layers(model, whole, keep_layers)
    depths = {name: stack.depth for name, stack in find_stacks(whole).items()}
    runs = removed_runs(kept, depths)
    if not runs:
        raise HealingError(
            "Layers were taken out before the first kept layer alone, where no weight can take a map for them: keep "
            "layer 0, or heal by training (lora, whole, distill)."
        )
    batches = steady(as_batches(data, batch_size, collator), RandomStreams())
    unmapped = {name: tuple(range(layers[0])) for name, layers in kept.items() if layers[0]}
    merged: list[LinearMap] = []
    maps = MergedMaps((), unmapped)
    with quiet_eval(model), quiet_eval(whole), torch.no_grad():
        places = _places(model, whole, runs, batches)
        try:
            for run, place in zip(runs, places, strict=True):
                found = _fit(model, whole, run, place, batches, ridge)
                _merge(found, place, maps.before)
                merged.append(found)
        except BaseException:
            maps.undo()
            raise
    return MergedMaps(tuple(merged), unmapped, maps.before)


def kept_layers(
    model: PreTrainedModel, whole: PreTrainedModel, keep_layers: KeepLayers | None
) -> dict[str, tuple[int, ...]]:
    """Return which layers of ``whole`` a cut model has, by stack.

    Raises:
        HealingError: If it has all of them, or it is not known which.
    """
    depths, wanted = ({name: stack.depth for name, stack in find_stacks(one).items()} for one in (whole, model))
    if depths == wanted:
        every = " and ".join(f"all {depth} layers of the {stack}" for stack, depth in depths.items())
        raise HealingError(f"The model has {every}, so that there is nothing to heal: cut it first, with prune_layers.")
    noted = saved_provenance(model.config).get("keep_layers")
    kept = noted if keep_layers is None else parse_keep_layers(keep_layers, depths)
    if {stack: len(layers) for stack, layers in (kept or {}).items()} != wanted:
        raise HealingError(
            f"The cut model has {wanted} layers and the whole one {depths}, but which of them those are is not known: "
            "give keep_layers=, those that were kept."
        )
    assert kept is not None
    return {stack: tuple(layers) for stack, layers in kept.items()}


def removed_runs(kept: Mapping[str, Sequence[int]], depths: Mapping[str, int]) -> list[RemovedRun]:
    """Return the runs of neighbouring layers that a cut takes out behind a kept one."""
    return [
        RemovedRun(stack, place, tuple(range(layer + 1, following)))
        for stack, layers in kept.items()
        for place, (layer, following) in enumerate(zip(layers, (*layers[1:], depths[stack]), strict=True))
        if following > layer + 1
    ]


@dataclass(frozen=True)
class _Place:
    """Where a map is fitted and merged: the layer before the run and the last one of it, with their projections."""

    layer: nn.Module
    own: Projection
    last: nn.Module
    its: Projection
    teacher_forced: bool


def _places(
    model: PreTrainedModel, whole: PreTrainedModel, runs: Sequence[RemovedRun], batches: Batches
) -> list[_Place]:
    """Find out for all runs, before anything is changed, which weights can take a map."""
    own = {run: find_stacks(model)[run.stack].layers(model)[run.layer] for run in runs}
    last = {run: find_stacks(whole)[run.stack].layers(whole)[run.removed[-1]] for run in runs}
    batch = next(iter(batches), None)
    if batch is None:
        raise HealingError("There are no rows to fit a map on: give some hundred, which need no labels.")
    found = []
    for network, layers in ((model, own), (whole, last)):
        with recorded_calls(layers) as calls:
            network(**on_device(batch, network.device))
        found.append({run: find_projection(layer, calls[run]) for run, layer in layers.items()})
    places = []
    for run in runs:
        mine, its = (by_run[run] for by_run in found)
        if mine is None or its is None or (mine.norm is None) != (its.norm is None):
            raise HealingError(
                f"{type(whole).__name__} takes no map: no linear layer was found whose output the blocks of its "
                f"{run.stack} add to their input as it is, neither scaled nor normalized nor by several experts; heal "
                "by training instead (lora, whole, distill)."
            )
        forced = model.config.is_encoder_decoder and run.stack == "decoder"
        places.append(_Place(own[run], mine, last[run], its, forced))
    return places


def _fit(
    model: PreTrainedModel,
    whole: PreTrainedModel,
    run: RemovedRun,
    place: _Place,
    batches: Batches,
    ridge: float,
) -> LinearMap:
    shifts = place.own.linear.bias is not None
    equations: NormalEquations | None = None
    for batch in batches:
        given, states = _tapped(model, batch, place.own.linear, _sum_of(place.layer, place.own))
        (target,) = _tapped(whole, batch, _sum_of(place.last, place.its))
        counts = real_tokens(states, on_device(batch, model.device), teacher_forced=place.teacher_forced)
        missing = _missing(states, target.to(states.device), place)
        if equations is None:
            equations = NormalEquations(states.shape[-1], shifts=shifts, device=states.device)
        equations.add(given.reshape(states.shape)[counts], missing[counts])
    if equations is None or not equations.rows:
        raise HealingError("The rows to fit a map on hold padding alone: give some hundred with tokens in them.")
    matrix, shift = equations.solve(ridge)
    return LinearMap(run, matrix, shift, equations.explained(matrix, shift), equations.rows)


def _missing(states: torch.Tensor, target: torch.Tensor, place: _Place) -> torch.Tensor:
    """Return what would have to be added to the sums of the layer before the run to be those of its end."""
    states, target = states.float(), target.float()
    if place.own.norm is None or place.its.norm is None:
        return target - states
    # A LayerNorm sees neither the mean nor the scale of a position, which therefore stay.
    own, its = (_normalized(value, norm) for value, norm in ((states, place.own.norm), (target, place.its.norm)))
    return states.std(-1, correction=0, keepdim=True) * (its - own)


def _normalized(values: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return nn.functional.layer_norm(values, norm.normalized_shape, eps=norm.eps)


_Tap = tuple[nn.Module, bool]  # a module, and whether what goes in is wanted, not what comes out


def _sum_of(layer: nn.Module, projection: Projection) -> _Tap:
    return (layer, False) if projection.norm is None else (projection.norm, True)


def _tapped(model: PreTrainedModel, batch: Mapping[str, Any], *taps: nn.Module | _Tap) -> list[torch.Tensor]:
    """Run a batch and return what modules gave, or took."""
    found: dict[int, torch.Tensor] = {}

    def note(place: int, wants_input: bool, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found[place] = args[0] if wants_input else first_tensor(output)

    pairs = [tap if isinstance(tap, tuple) else (tap, False) for tap in taps]
    hooks = [module.register_forward_hook(partial(note, place, wants)) for place, (module, wants) in enumerate(pairs)]
    try:
        model(**on_device(batch, model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [found[place] for place in range(len(taps))]


def _merge(found: LinearMap, place: _Place, before: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Change the weights of a projection, and of the LayerNorm behind it, noting what they were."""
    linear: Any = place.own.linear
    weight = linear.weight.double()
    factor = found.matrix.to(weight.device) + torch.eye(len(found.matrix), dtype=weight.dtype, device=weight.device)
    changes = [(linear.weight, weight @ factor if isinstance(linear, Conv1D) else factor.T @ weight)]
    if found.shift is not None:
        changes.append((linear.bias, linear.bias.double() @ factor + found.shift.to(weight.device)))
    if place.own.norm is not None and place.its.norm is not None and place.own.norm.elementwise_affine:
        pairs = zip(place.own.norm.parameters(), place.its.norm.parameters(), strict=True)
        changes += [(mine, its.to(mine.device)) for mine, its in pairs]
    for parameter, values in changes:
        before.append((parameter, parameter.clone()))
        parameter.copy_(values)
