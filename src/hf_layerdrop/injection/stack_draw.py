"""Draw one mask for each training forward of a stack, and find it again where that forward is recomputed.

`StackDraw` is a plain Python object that hangs on the modules of its stack: nothing of it is in the state dict, and all
of it is copied and pickled with the model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import shake_128
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import recomputation
from hf_layerdrop.injection.compiling import refuse_recording
from hf_layerdrop.injection.ranks import ddp
from hf_layerdrop.injection.ranks.agreement import Agreement
from hf_layerdrop.injection.trainable import with_one_to_train
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.depth_list import draws_of, rates_of
from hf_layerdrop.samplers.depth_masks import masks_by_depth
from hf_layerdrop.samplers.draws import (
    SAMPLER_VERSION,
    Mask,
    bernoulli,
    depth_weights,
    integers,
    one_of,
    shallowest_depth,
    shares_dropped,
    thresholds,
    uniforms,
    weighted,
)
from hf_layerdrop.samplers.learned.learner import RateLearner
from hf_layerdrop.samplers.rows import RowMask

logger = logging.getLogger(__name__)


class StackDraw:
    """Draw one mask for each training forward of a stack, and remember it for recomputations.

    Attributes:
        name: The name of the stack, and of what of its layers is drawn: ``encoder``, ``encoder/head``.
        depth: How many groups are drawn: layers, or parts of layers.
        fixed: A mask that holds in every forward in place of draws, if there is one.
        held: What training forwards run in place of a draw, and in whose name; see `held_layers.py`.
        mask: The mask of the forward that is running; None where nothing is dropped.
        forwards: Training forwards that were counted.
        layers_run: Layers that ran in them, recomputations not counted; by the share of rows where rows drop their own.
        layer_forwards: Layers that ran in all training forwards, also in those where nothing can be dropped; likewise.
        known: For each layer, whether it is known to run in the forward that is under way, and need not ask.
        heeded: Whether a layer has looked at its place in the mask of this forward.
        list_name: How the module that loops over the layers calls their list.
        running: Whether a forward of that module is under way.
        learner: What learns the rates from the draws, where they are learned.
        scales: Whether what a layer adds is divided by the chance that it runs.
        factors: By what it is multiplied then, one a layer.
        unscheduled: Whether the config names a schedule, and nobody has followed it yet.
        lowered: Whether a schedule holds the rates below those that were set.
    """

    def __init__(
        self,
        name: str,
        rates: Sequence[float],
        config: LayerDropConfig,
        *,
        structure: str = "layer",
        groups: Sequence[int] | None = None,
        within: StackDraw | None = None,
        has_sibling: bool = False,
        agreement: Agreement | None = None,
    ) -> None:
        """Draw ``groups`` groups in each layer, one if left out; those in a layer that ``within`` drops drop too.

        All draws of a model share one ``agreement`` with the other ranks.
        """
        depth = len(rates)
        self.stack = name
        self.structure = structure
        self.name = name if structure == "layer" else f"{name}/{structure}"
        self.groups = tuple(groups or [1] * depth)
        self.depth = sum(self.groups)
        self.list_name = ""
        self.place = ""  # of the model among those of a module that holds several
        self.running = False
        self._warned = False
        self.fixed: Mask | None = None
        self.held: tuple[Mask, str] | None = None
        self._within = within
        self.mask: Mask | None = None
        self.seed = 0
        self.step = self.micro_step = self.forward = 0
        self.forwards = self.layers_run = 0
        self.layer_forwards = 0
        self._nothing_known, self._all_run = (False,) * self.depth, (True,) * self.depth
        self.known: Mask = self._nothing_known
        self.heeded = False
        self.paused = False  # while the model is a sub-network, which drops nothing
        self.learner: RateLearner | None = None
        self._measured = False
        self._told_steps = False
        self.agreement = agreement or Agreement()  # with the other ranks
        self.agreement.join(self)
        self._reentrant_drops = False
        self._counted = False  # a forward with gradient, in this micro-step
        self._rehearsed: int | None = None  # the place of the last forward without gradient
        self._repeats = False  # whether a backward pass has repeated that one with gradient
        self._has_sibling = has_sibling  # the decoder gets the cache, and the encoder is not shown it
        self._checkpointed = False  # whether parts of layers were seen inside a checkpoint
        self._config = config
        self._sampler = config.sampler
        self._execution = config.execution
        self._by_row = config.granularity == "row"
        self._always_kept = config.always_kept(name, depth)
        self.scales = config.scale == "kept"
        self.unscheduled = config.schedule is not None
        self.lowered = False
        self.rates = tuple(rates)
        self.use_sampler_version(SAMPLER_VERSION)

    def __str__(self) -> str:
        """Say what is dropped, as the representations of states and models do."""
        rate = f"rate {self.rates[0]:g}" if len(set(self.rates)) == 1 else f"mean rate {self.mean_rate:.3g}"
        sampler = "" if self._sampler == "bernoulli" else f", sampler {self._sampler}"
        return f"{self.name}: {rate} of {len(self.rates)} layers{sampler}"

    def set_rates(self, rates: Sequence[float], *, agreed: bool = False) -> None:
        """Use these rates, one a layer, from the next forward on; ``agreed`` if the ranks need not be asked again."""
        self.rates = tuple(rates)
        self._group_rates = self._by_group(self.rates)
        self._thresholds = thresholds(self._group_rates)
        self.agreement.reached = self.agreement.reached and agreed
        self._active = any(self.rates)
        if self._sampler == "depth":
            self._masks, self._weights = self._masks_by_depth(max(self.rates))
            self._cumulated = tuple(accumulate(self._weights))
        if self.scales:
            dropped = shares_dropped(self._masks, self._weights) if self._sampler == "depth" else self.rates
            self.factors = tuple(1 / (1 - share) if share < 1 else 1.0 for share in dropped)

    def use_sampler_version(self, version: int) -> None:
        """Draw as this version of the sampler did."""
        self._version = version
        self._choose_layers = self._config.choice(version)
        listed, depth = self._config.depths, len(self.rates)
        self._listed = (
            draws_of(listed, self.stack, depth, self._always_kept, self._choose_layers) if listed is not None else None
        )
        self.set_rates(self.rates, agreed=self.agreement.reached)

    def set_seed(self, seed: int) -> None:
        """Draw from this seed from the next forward on."""
        self.seed = seed
        self.agreement.reached = False

    @property
    def place(self) -> str:
        """Where the model stands among the injected models of a module: a part of the counter; empty if it is alone."""
        return self._place

    @place.setter
    def place(self, place: str) -> None:
        self._place = place
        self._counted_as = f"{place}.{self.name}" if place else self.name

    @property
    def active(self) -> bool:
        """Whether any rate is above 0."""
        return self._active

    @property
    def fingerprint(self) -> str:
        """What decides the next draw, in words; the place of a forward counts for nothing where nothing is drawn."""
        place = f"{self.step}.{self.micro_step}" + (f".{self.next_forward}" if self._active else "")
        how = f"{self._execution}{', by row' * self._by_row}, {self._sampler}, rates {list(self.rates)}"
        if self._sampler == "depth":  # several lists have the same rates
            drawn = repr((self._version, self._masks, self._weights)).encode()
            how += f", depths {shake_128(drawn).hexdigest(8)}"
        how += ", scaled" if self.scales else ""
        if self.held is not None:
            how += f", {self.held[1]}"
        return f"{self._counted_as}: {how}, seed {self.seed}, step {place}"

    def may_drop(self, training: bool) -> bool:
        """Tell whether anything can be dropped in this mode, so that a graph cannot be the same in every forward."""
        if training and (self._active or self.held is not None):
            return True
        return self.mask is not None or self.fixed is not None

    @property
    def mean_kept(self) -> float:
        """Mean number of layers that a training forward runs."""
        if self._sampler == "depth" and self._active:
            return sum(sum(mask) * weight for mask, weight in zip(self._masks, self._weights, strict=True))
        return self.depth - sum(self._group_rates)

    @property
    def mean_rate(self) -> float:
        """Mean share that a training forward drops."""
        return 1 - self.mean_kept / self.depth if self.depth else 0.0

    def begin(self, owner: nn.Module, inputs: Sequence[Any]) -> None:
        """Choose the mask of the forward that ``owner`` starts; among its ``inputs`` may be a cache.

        What layers ask is answered here as far as it can be: a question a layer takes longer than a short layer.
        """
        self._measured = self.heeded = False
        self.running = True
        counts = owner.training and torch.is_grad_enabled() and not recomputation.in_backward()
        if counts and not self.agreement.reached and not self.paused:  # at rate 0, too: the others may wait for it
            self.agreement.seek(owner)
        if self.held is not None and owner.training:
            self._hold(self.held[0], counts=counts)
            return
        self.mask = self._choose(owner, inputs) if self._active and owner.training and not self.paused else self.fixed
        if counts:
            self.layer_forwards += self._count_layers()
            if isinstance(self.mask, RowMask):
                self.mask.counted_in.append("layer_forwards")
        if counts and self.mask is None and not self.paused:  # the others are counted where they are drawn
            self.forwards += 1
            self.layers_run += self.depth
        self.known = self._what_is_known()

    def go_on(self, mask: Mask | None, running: bool) -> None:
        """Go on with what a forward had, after one inside of it has ended; outside of all, nothing is known."""
        self.mask, self.running, self.known = mask, running, self._nothing_known

    def _what_is_known(self) -> Mask:
        if self._measured or self.scales or (self.mask is None and self._reentrant_drops):
            return self._nothing_known
        return self._all_run if self.mask is None else self.mask

    def _hold(self, mask: Mask, *, counts: bool) -> None:
        """Run these layers; a recomputation is within the same block, and finds them again."""
        self.mask = mask
        if counts:
            ddp.note_forward(self, mask)
            self.forwards += 1
            self.layers_run += mask.count(True)
            self.layer_forwards += mask.count(True)

    def _count_layers(self) -> int:
        """Count the layers that this forward runs; where whole layers are drawn too, their draw does."""
        if self.structure != "layer":
            return 0 if self._within is not None else len(self.groups)
        return self.depth if self.mask is None else self.mask.count(True)

    def runs(self, layer: int, training: bool = False) -> bool:
        """Tell whether a layer runs in the forward that is under way, or ran in the one that is recomputed."""
        if self.mask is None:
            if training and self._active and not self.running:
                self.warn_if_passed_by()
            return not (self._reentrant_drops and recomputation.in_backward()) or self._ran(layer)
        self.heeded = True
        if not self.mask[layer] and not torch.is_grad_enabled():
            self._remember_drop(layer)
        return self.mask[layer]

    def check_heeded(self) -> None:
        """Refuse a forward that ran its layers past their ``__call__``, so that none of them was dropped.

        Raises:
            LayerDropStateError: If no layer has asked whether it runs.
        """
        drops = self.mask is not None and (isinstance(self.mask, RowMask) or not all(self.mask))
        if drops and not self.heeded:
            raise LayerDropStateError(
                f"The {self.name} drew layers to drop, and none of them was called: the model runs them in a way of "
                "its own (their forward directly, or a fused kernel), where LayerDrop has no effect; remove it."
            )

    def factor_of(self, layer: int) -> float:
        """Return by what that which a running layer adds is multiplied, in the forward under way or repeated."""
        mask = self.in_force()
        if isinstance(mask, RowMask) and mask.rows:  # as many of the rows as do run
            return mask.rows / max(1, len(mask.kept(mask.rows)[layer]))
        chosen = self.fixed if self.held is None else self.held[0]
        return 1.0 if mask is None or mask is chosen else self.factors[layer]

    def note_activation(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Show what a layer that ran did to the hidden states, if the rates are learned from it."""
        if self._measured and self.mask is not None and self.learner is not None:
            self.learner.note_activation(self.name, layer, before, after)

    def note_rows(self, mask: RowMask, layer: int, rows: int) -> None:
        """Count a layer by the share of the rows on which it runs; warn of a batch too small to leave one out."""
        first = mask.rows is None and mask.counted_in and not self.lowered  # a schedule may come down to nothing
        if first and all(len(kept) == rows for kept in mask.kept(rows)):
            self._warn(f"of {rows} rows a batch it would drop less than half a row a layer (granularity='row')")
        if not recomputation.in_backward():
            dropped = 1 - len(mask.kept(rows)[layer]) / rows
            for count in mask.counted_in:
                setattr(self, count, getattr(self, count) - dropped)

    def begin_step(self, step: int, micro_step: int = 0) -> None:
        """Set the counter to the first forward of a step, or of a micro-step whose gradients the step accumulates."""
        self.go_to(step, micro_step)
        self._told_steps = True

    def go_to(self, step: int, micro_step: int, forward: int = 0) -> None:
        """Set the counter; what came before it is over."""
        self.step, self.micro_step, self.forward = step, micro_step, forward
        self._counted, self._rehearsed, self._repeats = False, None, False

    @property
    def next_forward(self) -> int:
        """Place in its micro-step of the forward that comes next: those that a backward pass repeats share one."""
        return self.forward + self._repeats

    def draw(self) -> Mask:
        """Return the mask that the counter stands at; a pure function of rates, seed, counter and name."""
        counter = self._counter
        if self._sampler == "depth":
            # The stacks of a model go to one place of their lists together.
            number = uniforms(*(counter if self._listed is None else (*counter[:-1], self.place)), 1)[0]
            alike = self._version == 1 and self._listed is None
            return one_of(self._masks, number) if alike else weighted(self._masks, self._cumulated, number)
        if self._by_row:
            return RowMask(self.rates, counter)
        mask = bernoulli(self._thresholds, integers(*counter, self.depth))
        layers = self._within.mask if self._within is not None else None
        return mask if layers is None else tuple(map(all, zip(mask, self._by_group(layers), strict=True)))

    @property
    def _counter(self) -> tuple[int, int, int, int, str]:
        return (self.seed, self.step, self.micro_step, self.forward, self._counted_as)

    def _mask_for(self, owner: nn.Module) -> Mask:
        """Return the mask of this place of the counter, with one more layer if else nothing would be trained."""
        mask = self.draw()
        if all(mask):
            return mask
        within = self._within.mask if self._within is not None else None
        allowed = self._by_group(within) if within is not None else None
        running = with_one_to_train(self, owner, mask, allowed, self._margins)
        return mask.running(running) if isinstance(mask, RowMask) else running

    def _margins(self) -> list[int]:
        """Return for each group by how much its number lies above that below which it is dropped."""
        numbers = integers(*self._counter, self.depth)
        return [number - threshold for number, threshold in zip(numbers, self._thresholds, strict=True)]

    def in_force(self) -> Mask | None:
        """Return the mask of the forward that is under way, or that a checkpoint inside of it repeats."""
        if self.mask is None:
            if not (self._checkpointed and recomputation.in_backward()):
                return None
            return _parts_on(recomputation.second_run_record()).get(id(self))
        if self.mask is not self.fixed and (record := recomputation.first_run_record()) is not None:
            _parts_on(record)[id(self)] = self.mask
            self._checkpointed = True
        return self.mask

    def _by_group(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Repeat each layer's value for each of its groups."""
        return tuple(value for value, count in zip(values, self.groups, strict=True) for _ in range(count))

    def _choose(self, owner: nn.Module, inputs: Sequence[Any]) -> Mask | None:
        if recomputation.in_backward():
            return self._remembered() or self._repeated(owner)
        refuse_recording(owner.training)
        self.forward, self._repeats = self.next_forward, False
        counts = torch.is_grad_enabled()
        if recomputation.inside_generate():
            return None
        if not counts and recomputation.inside_own_generate():
            self._warn("the model generates, in a loop of its own")
            return None
        given = (*inputs, recomputation.cache_of_caller()) if self._has_sibling else inputs
        if any(map(holds_tokens, [value for value in given if type(value) not in _NO_CACHE])):
            if counts:
                self._warn("a forward was given a cache that holds tokens (prefix tuning, chunks of a long text)")
            return None
        mask = self._mask_for(owner)
        recorded = self._record(mask)
        if counts or recorded:
            if not counts:  # else they have been asked
                self.agreement.seek(owner)
            self._note(mask)
            self.forward += 1
            self._counted = True
        else:
            self._rehearsed = self.forward
        return mask

    def _record(self, mask: Mask) -> bool:
        """Leave the mask on the checkpoint whose first run this is, for the second; tell whether there is one."""
        record = recomputation.first_run_record()
        if record is not None:
            _masks_on(record).setdefault(id(self), []).append(mask)
        return record is not None

    def _note(self, mask: Mask) -> None:
        """Let all know of a forward whose gradient counts."""
        if self.unscheduled:
            raise LayerDropStateError(
                f"The LayerDropConfig of this model names the schedule {self._config.schedule!r}, and nothing follows "
                "it: Trainer does by itself; in a loop of your own call scale_rates(model, factor) in each step, "
                "or inject a config with schedule=None."
            )
        if self.forward == 1 and not self._told_steps and recomputation.inside_trainer():
            raise LayerDropStateError(
                "This Trainer does not tell LayerDrop its steps, because it was built before LayerDrop was "
                "injected; build it afterwards, or add hf_layerdrop.LayerDropStepCallback() to its callbacks."
            )
        ddp.note_forward(self, mask)
        if self.learner is not None and not self._repeats:
            self.learner.note_draw(self.name, self.rates, mask)
            self._measured = True
        self.forwards += 1
        self.layers_run += mask.count(True)
        if isinstance(mask, RowMask):
            mask.counted_in.append("layers_run")

    def _remember_drop(self, layer: int) -> None:
        """Note on a reentrant checkpoint around a layer that it was dropped: the backward pass calls it again."""
        record = recomputation.first_run_record()
        if record is not None:
            record._layerdrop_dropped = (id(self), layer)
            self._reentrant_drops = True

    def _ran(self, layer: int) -> bool:
        record = recomputation.second_run_record()
        return getattr(record, "_layerdrop_dropped", None) != (id(self), layer)

    def _remembered(self) -> Mask | None:
        """Return the masks of the first run in the order in which it drew them, again and again."""
        record = recomputation.second_run_record()
        masks = _masks_on(record).get(id(self)) if record is not None else None
        if not masks:
            return None
        masks.append(masks.pop(0))
        return masks[-1]

    def _repeated(self, owner: nn.Module) -> Mask:
        """Return the mask of the forwards without gradient that a hook on the loss repeats with it, as GradCache does.

        They are the parts of one large batch, so all have one mask, and count as one forward.
        """
        if self._counted or self._rehearsed != self.forward:
            raise LayerDropStateError(
                f"The {self.name} is recomputed in a backward pass, but the forward that it repeats was not seen: the "
                "layers it dropped are unknown; use torch.utils.checkpoint or the model's own gradient checkpointing. "
                "A loss that caches gradients (GradCache) has to be the only one of its step."
            )
        mask = self._mask_for(owner)
        self._record(mask)
        self.agreement.seek(owner)
        self._note(mask)
        self._repeats = True
        return mask

    def _masks_by_depth(self, rate: float) -> tuple[tuple[Mask, ...], tuple[float, ...]]:
        """Return the masks that are drawn, the shallowest first, and how likely each is."""
        if self._listed is not None:
            return self._masks_of_list()
        masks = masks_by_depth(self.depth, self._always_kept, self._choose_layers)
        if self._version == 1:
            masks = masks[shallowest_depth(rate, self.depth, version=1) - 1 :]
            return masks, (1 / len(masks),) * len(masks)
        masks = tuple(sorted(masks, key=sum))
        weights = depth_weights([mask.count(False) for mask in masks[::-1]], sum(self.rates))[::-1]
        drawn = [(mask, weight) for mask, weight in zip(masks, weights, strict=True) if weight]
        return tuple(mask for mask, _ in drawn), tuple(weight for _, weight in drawn)

    def _masks_of_list(self) -> tuple[tuple[Mask, ...], tuple[float, ...]]:
        """Return the masks of a list of depths, in its order; at lower rates than its own, the whole stack as well."""
        assert self._listed is not None
        masks, shares = zip(*self._listed, strict=True)
        whole = sum(rates_of(self._listed))
        factor = min(sum(self.rates) / whole, 1.0) if whole else 1.0
        return (*masks, (True,) * self.depth), (*(share * factor for share in shares), 1 - factor)

    def warn_if_passed_by(self) -> None:
        """Warn of layers that train without a draw, since the ``forward`` of what loops over them was called."""
        if not self._active or self.running or self._warned or self.paused:
            return
        if torch.is_grad_enabled() and not recomputation.in_backward():
            self._warn("the forward() of the module that loops over its layers was called, and not the module")

    def _warn(self, why: str) -> None:
        """Say once that nothing is dropped though a rate is set and the model is in train mode."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "LayerDrop is off in a training forward of the %s, though its rates are %s: %s.",
                self._counted_as,
                list(self.rates),
                why,
            )


def shown_with(extra: str, draws: Sequence[StackDraw]) -> str:
    """Return what a module's representation says of itself, with what is dropped in it."""
    return ", ".join(filter(None, [extra, *(f"layerdrop=({draw})" for draw in draws)]))


def masks_of(draws: Sequence[StackDraw]) -> list[tuple[Mask | None, bool]]:
    """Return what the forward that is under way goes on with when one inside of it has ended."""
    return [(draw.mask, draw.running) for draw in draws]


# What most inputs are; to ask each for the attributes of a cache takes longer than to draw.
_NO_CACHE = frozenset({torch.Tensor, type(None), bool, int, float, str, tuple, list})


def holds_tokens(value: Any) -> bool:
    """Tell whether an argument is a cache that already holds tokens: such a forward continues a generation."""
    if not hasattr(value, "get_seq_length"):
        return False
    cache = getattr(value, "self_attention_cache", value)
    # The first layer of a training forward may have been dropped, so that it alone holds none.
    return value.get_seq_length() > 0 or any(layer.get_seq_length() > 0 for layer in getattr(cache, "layers", ()))


def _masks_on(record: Any) -> dict[int, list[Mask]]:
    if not hasattr(record, "_layerdrop_masks"):
        record._layerdrop_masks = {}
    return record._layerdrop_masks


def _parts_on(record: Any) -> dict[int, Mask]:
    if not hasattr(record, "_layerdrop_parts"):
        record._layerdrop_parts = {}
    return record._layerdrop_parts
