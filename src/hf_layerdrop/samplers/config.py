"""LayerDropConfig: what to drop, how often and how it is drawn. Frozen, validated, JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.config_values import (
    EXECUTIONS,
    GRANULARITIES,
    SAMPLERS,
    SCALES,
    Rate,
    as_never_drop,
    as_python,
    as_rate,
    as_structure,
    check_one_of,
    check_schedule,
    stack_name,
)
from hf_layerdrop.samplers.depth_list import (
    Choice,
    DepthList,
    as_depth_list,
    draws_of,
    mean_share_dropped,
    rates_of,
    sizes_of,
    unknown_stacks,
)
from hf_layerdrop.samplers.depth_masks import check_depths_reach, check_drawn
from hf_layerdrop.samplers.draws import SAMPLER_VERSION
from hf_layerdrop.samplers.frozen_dict import FrozenDict
from hf_layerdrop.samplers.keep_layers import evenly_spread
from hf_layerdrop.samplers.learned.rates_from_shares import HIGHEST_RATE, rate_of_the_others
from hf_layerdrop.samplers.nested import nested_set
from hf_layerdrop.samplers.schedules import SHAPES

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _BesideRate(TypedDict, total=False):
    """Settings that `LayerDropConfig.for_depth` hands on."""

    seed: int | None
    never_drop: Sequence[int] | Mapping[str, Sequence[int]]
    structure: str | Sequence[str]
    sampler: str
    execution: str
    granularity: str
    nested: bool
    scale: str
    schedule: str | None


class _BesideDepths(TypedDict, total=False):
    """Settings that `LayerDropConfig.for_depths` hands on."""

    seed: int | None
    never_drop: Sequence[int] | Mapping[str, Sequence[int]]
    execution: str
    nested: bool
    scale: str
    schedule: str | None


class _BesideLargest(TypedDict, total=False):
    """Settings that `LayerDropConfig.for_pretraining` hands on."""

    seed: int | None
    never_drop: Sequence[int] | Mapping[str, Sequence[int]]
    shape: str
    execution: str
    granularity: str
    scale: str
    schedule: str | None


@dataclass(frozen=True)
class LayerDropConfig:
    """Say which layers are dropped while training, and how often.

    Attributes:
        rate: Chance that a layer is skipped in a training forward: one number for all layers, one a layer, or either
            by stack (``{"encoder": 0.2, "decoder": 0.1}``; a stack that is not named is never dropped).
        shape: How a single number is spread over depth: ``uniform`` (the paper), ``linear`` (stochastic depth),
            ``exponential`` (LayerSkip) or ``alternating`` (every second layer, from layer 1 on). With ``linear`` and
            ``exponential``, ``rate`` is the rate of the last layer and the first is never dropped.
        seed: Seed of the draws. None takes `TrainingArguments.seed`, or 0 outside of Trainer, and writes it down.
        never_drop: Indices of layers that always run, negative ones counted from the end; or a dict of such by stack.
        structure: What is dropped as one: ``layer``, ``attention`` or ``ffn`` (a sub-layer), ``head``, or several of
            them, as in ``("head", "layer")``; each group is then dropped on its own, with the rate of its layer
            (3.2.1). All but ``layer`` need ``sampler="bernoulli"``. See `structures.py` and `structure_drop.py`.
        sampler: ``bernoulli`` draws each layer on its own (the paper). ``depth`` draws a depth, from a minimum to N and
            as evenly as the rate allows, and keeps the evenly spread set of that depth, so that every training forward
            is one of the sub-networks that are used later; ``rate`` is then the average share dropped of the layers
            that ``never_drop`` leaves, at most 0.5, and is held exactly.
            ``learned`` draws each layer on its own with a rate that is learned while training (3.2.2); ``rate`` is
            then the mean over the layers of a stack, which is held. One number a layer is where the rates start.
        depths: With ``sampler="depth"``, the depths that are drawn, in place of all of them and of a ``rate``:
            ``[12, 6, 4, 3]`` alike, ``{12: 2, 6: 1}`` with weights, or a list for each stack, of which the depths at
            one place are drawn together. Each keeps its evenly spread set, or its nested one. See `for_depths`.
        nested: With ``sampler="depth"``, let the set of each depth hold those of all smaller ones, in place of the
            evenly spread sets: what ``keep_layers="nested:6"`` cuts to.
        scale: ``none`` hands on what a layer gives, as the paper does. ``kept`` divides what a layer that runs adds to
            its input by the chance that it runs, in training alone: ``x + (layer(x) - x) / (1 - rate)``, so that a
            layer adds on average what it adds in evaluation (arXiv 2609.05275). It needs layers that add to their
            input: those of pre-norm models. The rate is that of the layer at the step: what the sampler drops it at.
        schedule: How the rates move over training: a name of `schedules.SCHEDULES`, with numbers as in
            ``"early:share=0.3"``. Trainer and Lightning follow it by themselves; a loop of one's own calls
            `scale_rates` in each step, and is refused if it never does. None leaves that to
            `LayerDropScheduleCallback`, whose schedule goes before this one.
        execution: ``skip`` does no work for a dropped layer. ``mask`` computes every layer and discards what a dropped
            one gives, so that the whole model compiles to one graph (see `masking.py`); its gradients are then zeros.
        granularity: ``batch`` drops a layer for all rows of a batch (the paper). ``row`` lets each row drop its own
            layers: of B rows a layer runs on round(B (1 - rate)), at least on one below rate 1, and computes those
            alone (DINOv2). Every layer then runs in every step; see `samplers/rows.py` and `injection/rows/`.

    A forward in train mode draws once, and drops nothing if it is given a cache that holds tokens or is a part of a
    generation. What is drawn never leaves a step without anything to train: if a draw drops every layer of a stack that
    holds trainable weights, as adapters in few layers, and nothing else of the model is trainable, the one of these
    layers runs whose number in the draw lies highest above that below which it is dropped. Forwards without gradient do
    not advance the count: until the next one with gradient, or the next step, all have the mask that this one will
    have. To let each of several draw for itself, as to sample by LayerDrop, call `set_step` before it.

    Raises:
        LayerDropConfigError: If a value is not allowed; the message names what is.
    """

    rate: Rate | Mapping[str, Rate] = 0.0
    shape: str = "uniform"
    seed: int | None = None
    never_drop: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    structure: str | tuple[str, ...] = "layer"
    sampler: str = "bernoulli"
    execution: str = "skip"
    depths: DepthList | None = None
    granularity: str = "batch"
    nested: bool = False
    scale: str = "none"
    schedule: str | None = None

    def __init__(
        self,
        rate: float | Sequence[float] | Mapping[str, float | Sequence[float]] = 0.0,
        *,
        shape: str = "uniform",
        seed: int | None = None,
        never_drop: Sequence[int] | Mapping[str, Sequence[int]] = (),
        structure: str | Sequence[str] = "layer",
        sampler: str = "bernoulli",
        execution: str = "skip",
        depths: Sequence[int] | Mapping[int, float] | Mapping[str, Sequence[int]] | None = None,
        granularity: str = "batch",
        nested: bool = False,
        scale: str = "none",
        schedule: str | None = None,
    ) -> None:
        """Convert every value once, so that inside the package each has one type."""
        check_one_of("shape", shape, tuple(SHAPES))
        structure = as_structure(structure)
        check_one_of("sampler", sampler, SAMPLERS)
        check_one_of("execution", execution, EXECUTIONS)
        check_one_of("granularity", granularity, GRANULARITIES)
        check_one_of("scale", scale, SCALES)
        check_schedule(schedule)
        if nested is not False and (nested is not True or sampler != "depth"):
            raise LayerDropConfigError(
                f"nested is {nested!r} beside sampler={sampler!r}; it is True or False, and True says which sets "
                "sampler='depth' draws: give that sampler too, or use LayerDropConfig.for_depths."
            )
        seed = as_python(seed)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
            raise LayerDropConfigError(f"seed is {seed!r}; it must be a whole number from 0 to 2**63 - 1, or None.")
        depths = as_depth_list(depths)
        if depths is not None and (sampler != "depth" or not _is_zero(rate)):
            raise LayerDropConfigError(
                f"depths is {_plain(depths)!r}, from which the rate follows, beside rate={rate!r} and "
                f"sampler={sampler!r}; leave the rate out and give sampler='depth', or use LayerDropConfig.for_depths."
            )
        if isinstance(rate, Mapping):
            checked: Any = FrozenDict({stack_name(stack): as_rate(value, stack) for stack, value in rate.items()})
        else:
            checked = as_rate(rate)
        for value in checked.values() if isinstance(checked, dict) else [checked]:
            if isinstance(value, tuple) and (shape != "uniform" or sampler == "depth"):
                setting = f"shape={shape!r}" if shape != "uniform" else "sampler='depth'"
                raise LayerDropConfigError(
                    f"rate is one number a layer, which {setting} cannot spread; give a single number."
                )
            if sampler == "depth" and value > 0.5:
                raise LayerDropConfigError(
                    f"rate is {value}, but sampler='depth' draws every depth from a minimum to N, which drops at "
                    "most half of the "
                    "layers on average; give a rate from 0 to 0.5."
                )
            largest = max(value) if isinstance(value, tuple) else value
            if sampler == "learned" and largest > HIGHEST_RATE:
                raise LayerDropConfigError(
                    f"rate is {largest}, but sampler='learned' drops no layer more often than {HIGHEST_RATE}; give a "
                    f"rate from 0 to {HIGHEST_RATE}."
                )
        if sampler == "learned" and execution == "mask":
            raise LayerDropConfigError(
                "sampler='learned' measures the layers that run, and execution='mask' runs all; give execution='skip'."
            )
        if sampler != "bernoulli" and shape != "uniform":
            raise LayerDropConfigError(f"shape={shape!r} has no meaning for sampler={sampler!r}; leave it out.")
        for setting, value, only in (
            ("sampler", sampler, "bernoulli"),
            ("execution", execution, "skip"),
            ("scale", scale, "none"),
        ):
            if structure != "layer" and value != only:
                raise LayerDropConfigError(
                    f"structure is {structure!r}, which {setting}={value!r} cannot serve; give {setting}={only!r}, or "
                    "structure='layer'."
                )
        for setting, given, only in (
            ("structure", structure, "layer"),
            ("sampler", sampler, "bernoulli"),
            ("execution", execution, "skip"),
        ):
            if granularity == "row" and given != only:
                raise LayerDropConfigError(
                    f"granularity='row' drops layers, each on its own, and skips them, which {setting}={given!r} does "
                    f"not; give {setting}={only!r}, or granularity='batch'."
                )
        for name, value in {
            "rate": checked,
            "shape": shape,
            "seed": seed,
            "never_drop": as_never_drop(never_drop),
            "structure": structure,
            "sampler": sampler,
            "execution": execution,
            "depths": depths,
            "granularity": granularity,
            "nested": nested,
            "scale": scale,
            "schedule": schedule,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def for_depth(
        cls, depth: int, *, of: int, shape: str = "uniform", **settings: Unpack[_BesideRate]
    ) -> LayerDropConfig:
        """Choose the rate that uses ``depth`` of ``of`` layers on average: a mean rate of p* = 1 - r/N (3.2.2).

        The mean of the exponential shape depends on the number of layers, so the result then holds one rate a layer.
        """
        depth, of = as_python(depth), as_python(of)
        if not (type(depth) is type(of) is int and 0 < depth <= of):
            raise LayerDropConfigError(
                f"depth is {depth!r} of {of!r}; it must be a whole number from 1 to the number of layers."
            )
        check_one_of("shape", shape, tuple(SHAPES))
        target = 1 - depth / of
        weights = SHAPES[shape](1.0, of)
        mean_weight = sum(weights) / of
        largest = target / mean_weight if target else 0.0
        if largest > 1:
            raise LayerDropConfigError(
                f"A {shape} shape drops at most {mean_weight:.3g} of {of} layers on average, but depth {depth} "
                f"needs {target:.3g}; "
                "choose a larger depth or shape='uniform'."
            )
        if shape == "exponential":
            return cls([largest * weight for weight in weights], **settings)
        return cls(largest, shape=shape, **settings)

    @classmethod
    def for_depths(
        cls,
        depths: Sequence[int] | Mapping[int, float] | Mapping[str, Sequence[int]],
        **settings: Unpack[_BesideDepths],
    ) -> LayerDropConfig:
        """Train these depths and no others: each training forward is one of them, whole models by naming their depth.

        A short fixed list of sub-networks comes nearer to models trained for their depth alone than random draws do
        (Starbucks, Zhuang et al., 2024). Give ``{12: 2, 6: 1, 3: 1}`` to draw the first as often as both others.

        What was trained as a depth of 6 is cut by ``keep_layers=6``; with ``nested=True``, where each smaller set lies
        in the larger ones, by ``keep_layers="nested:6"``.
        """
        return cls(depths=depths, sampler="depth", **settings)

    @classmethod
    def for_pretraining(cls, p_max: float, **settings: Unpack[_BesideLargest]) -> LayerDropConfig:
        """Drop layers as "Don't Drop Dropout" pretrains (Elhoushi et al., 2026, arXiv 2609.05275).

        The rate of layer l of L at step t of T is ``p_max * l / (L - 1) * (1 - t / T)``: it rises over depth and falls
        over time to 0, and what a layer that runs adds is divided by the chance that it runs. ``shape="alternating"``
        drops every second layer alone, for a cut to ``"::2"``. A post-norm model takes ``scale="none"``. The paper
        draws for each sequence: ``granularity="row"``, for layers that can run on some rows of a batch.

        The falling over time is a part of the config: Trainer and Lightning follow it without a callback. A loop of
        one's own calls ``scale_rates(model, 1 - step / steps)`` in each step, and is told so if it does not.
        """
        recipe: _BesideLargest = {"shape": "linear", "scale": "kept", "schedule": "falling"}
        recipe.update(settings)
        return cls(p_max, **recipe)

    @property
    def mean_rate(self) -> float:
        """Average rate over layers and stacks, before ``never_drop``; of some shapes in the limit of many layers.

        With ``depths`` the deepest is taken for the whole model, whose depth a config does not know.
        """
        if self.depths is not None:
            return mean_share_dropped(self.depths)
        values = list(self.rate.values()) if isinstance(self.rate, Mapping) else [self.rate]
        if not values:
            return 0.0
        mean_weight = {"uniform": 1.0, "linear": 0.5, "exponential": 1 / math.log(2) - 1, "alternating": 0.5}[
            self.shape
        ]
        return sum(_mean(value) if isinstance(value, tuple) else value * mean_weight for value in values) / len(values)

    @property
    def structures(self) -> tuple[str, ...]:
        """What is dropped as one, always as a tuple."""
        return (self.structure,) if isinstance(self.structure, str) else self.structure

    def rates_for(self, depths: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
        """Spread the rates over stacks of the given depths: one rate a layer, ``never_drop`` applied.

        Raises:
            LayerDropConfigError: If a stack is unknown, or the number of rates or an index does not fit its depth.
        """
        for what, value in (("rate", self.rate), ("never_drop", self.never_drop)):
            if isinstance(value, Mapping) and (unknown := sorted(set(value) - set(depths))):
                raise LayerDropConfigError(f"{what} names the stack {unknown[0]!r}; the model has {', '.join(depths)}.")
        if self.depths is not None and (unknown := unknown_stacks(self.depths, depths)):
            raise LayerDropConfigError(f"depths names the stack {unknown[0]!r}; the model has {', '.join(depths)}.")
        return {stack: self._rates_of(stack, depth) for stack, depth in depths.items()}

    def choice(self, version: int = SAMPLER_VERSION) -> Choice:
        """Return how the layers of a depth are chosen, by this version of the samplers."""
        if self.nested:
            return nested_set
        return evenly_spread if version > 2 else partial(evenly_spread, alone=0)

    def always_kept(self, stack: str, depth: int) -> frozenset[int]:
        """Return the indices of the layers of a stack that ``never_drop`` protects."""
        named = self.never_drop.get(stack, ()) if isinstance(self.never_drop, Mapping) else self.never_drop
        for index in named:
            if not -depth <= index < depth:
                raise LayerDropConfigError(
                    f"never_drop names layer {index}, but the {stack} has {depth} layers (0 to {depth - 1})."
                )
        return frozenset(index % depth for index in named)

    def _rates_of(self, stack: str, depth: int) -> tuple[float, ...]:
        rate = self.rate.get(stack, 0.0) if isinstance(self.rate, Mapping) else self.rate
        if isinstance(rate, tuple) and len(rate) != depth:
            raise LayerDropConfigError(
                f"rate has {len(rate)} values, but the {stack} has {depth} layers; give one number, or {depth} of them."
            )
        kept = self.always_kept(stack, depth)
        if self.depths is not None:
            draws = draws_of(self.depths, stack, depth, kept, self.choice())
            check_drawn(sizes_of(self.depths, stack, depth), draws, kept, stack)
            return rates_of(draws)
        if self.sampler == "depth" and not isinstance(rate, tuple):
            check_depths_reach(rate, depth, kept, stack, self.choice())
        if self.sampler == "learned" and not isinstance(rate, tuple):
            rate = rate_of_the_others(rate, depth, kept, stack)
        rates = rate if isinstance(rate, tuple) else SHAPES[self.shape](rate, depth)
        return tuple(0.0 if layer in kept else float(value) for layer, value in enumerate(rates))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that `from_dict` reads."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerDropConfig:
        """Read what `to_dict` wrote.

        Raises:
            LayerDropConfigError: If it is no dict, or a key is not a setting.
        """
        if not isinstance(values, Mapping):
            raise LayerDropConfigError(f"Got {values!r}, but to_dict wrote a dict: give one, such as {{'rate': 0.2}}.")
        allowed = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(allowed)):
            raise LayerDropConfigError(
                f"LayerDropConfig has no setting {unknown[0]!r}; its settings are {', '.join(allowed)}."
            )
        return cls(**values)

    @classmethod
    def of(cls, value: LayerDrop) -> LayerDropConfig:
        """Accept what ``layerdrop=`` accepts: a rate in any of its forms, a config, or its dict."""
        if isinstance(value, LayerDropConfig):
            return value
        if isinstance(value, Mapping) and not value:
            raise LayerDropConfigError(
                "layerdrop is an empty dict; give a rate, rates by stack, or the dict of a LayerDropConfig."
            )
        if isinstance(value, Mapping) and set(value) & {field.name for field in fields(cls)}:
            if "rate" not in value and not value.get("depths"):
                raise LayerDropConfigError(
                    f"layerdrop is {dict(value)!r}, which has no rate; add one, such as 'rate': 0.2."
                )
            return cls.from_dict(value)
        return cls(value)


LayerDrop: TypeAlias = float | Sequence[float] | Mapping[str, Any] | LayerDropConfig
"""What ``layerdrop=`` accepts: a rate, one a layer, rates by stack, a config or its dict."""


def _is_zero(rate: Any) -> bool:
    return isinstance(rate, int | float) and rate == 0


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
