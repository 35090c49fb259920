"""Which sub-networks of one model a training takes: looked up and checked once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn
from transformers import PreTrainedModel

from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.distillation.depths.config import DepthTraining, TrainedDepths
from hf_layerdrop.distillation.depths.teacher import FrozenTeacher
from hf_layerdrop.distillation.positions import shifts_labels
from hf_layerdrop.distillation.student import has_head
from hf_layerdrop.errors import DistillationError, LayerDropConfigError, LayerDropStateError
from hf_layerdrop.evaluation.evaluate import depth_name
from hf_layerdrop.injection.inject import inject_layerdrop, remove_layerdrop
from hf_layerdrop.injection.injected import STATE_ATTRIBUTE, injected_models
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.injection.state import LayerDropState
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.samplers.depth_list import describe, draws_of
from hf_layerdrop.samplers.depths_of_step import choose_depths
from hf_layerdrop.samplers.draws import Mask
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers

Kept = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SubNetwork:
    """One of the sub-networks that are trained.

    Attributes:
        name: As in the keys of metrics: ``depth_6``, ``depth_encoder6_decoder3``.
        masks: Which layers run, by stack.
        weight: Of its loss.
        is_whole: Whether it is the whole model.
        layers: How many layers it runs.
        pairs: Which hidden states are compared with those of the whole model, by stack: those after each of its layers.
    """

    name: str
    masks: Mapping[str, Mask]
    weight: float
    is_whole: bool
    layers: int
    pairs: Mapping[str, Sequence[tuple[int, int]]]


class DepthPlan:
    """What is trained of one model in which LayerDrop is injected.

    Attributes:
        training: The settings.
        networks: The sub-networks, the largest first.
        draws: What runs them.
        shifts: Whether the model shifts its labels, as a causal language model does.
        teacher: The frozen teacher, if there is one.
    """

    def __init__(self, model: PreTrainedModel, training: DepthTraining) -> None:
        self.training = training
        self._model = ref(model)
        self._state: LayerDropState = getattr(model, STATE_ATTRIBUTE)
        _check_state(self._state)
        self.draws: dict[str, StackDraw] = {draw.stack: draw for draw in self._state.draws.values()}
        self.shifts = shifts_labels(model)
        self.networks = _networks(model, training)
        self._always = self._places_of(training.always)
        self._count = training.per_step or min(len(self._always) + 1, len(self.networks))
        self._check_count()
        _check_head(model, training)
        self.teacher = None if training.teacher is None else FrozenTeacher(training, model)

    def of_step(self, step: int, micro_step: int = 0) -> list[SubNetwork]:
        """Return what a step trains, the largest first: a pure function of seed, step and micro-step."""
        among, always = set(range(len(self.networks))), set(self._always)
        count = self._count
        if step % self.training.whole_every and self._whole is not None:
            among.discard(self._whole)
            always.discard(self._whole)
            count -= 1
        chosen = choose_depths(among, count, always, seed=self.seed, step=step, micro_step=micro_step)
        return [self.networks[place] for place in chosen]

    def check_in_force(self) -> None:
        """Refuse a model that has changed since, in which the masks would hold other layers, or none.

        Raises:
            LayerDropStateError: If its LayerDrop is another, or it is a sub-network for the length of a block.
        """
        if getattr(self._model(), STATE_ATTRIBUTE, None) is not self._state:
            raise LayerDropStateError(
                "LayerDrop was removed from the model, or injected again, since its depths were prepared; build the "
                "DepthTrainer, or call prepare_depths, when the model is as it is trained."
            )
        if any(draw.paused for draw in self.draws.values()):
            raise LayerDropStateError(
                "The model is a sub-network for the length of a with block; train its depths after the block."
            )

    @property
    def seed(self) -> int:
        """The seed of the draws."""
        return self._state.seed if self.training.seed is None else self.training.seed

    @property
    def place(self) -> tuple[int, int]:
        """The step and the micro-step that LayerDrop was told of last."""
        draw = next(iter(self.draws.values()))
        return draw.step, draw.micro_step

    @cached_property
    def description(self) -> str:
        """What the ranks have to agree on, beside step and seed of LayerDrop."""
        names = ", ".join(network.name for network in self.networks)
        settings = f"always {self._always}, the whole in every step of {self.training.whole_every}"
        return f"{self._count} a step of {names}, {settings}, seed {self.training.seed}"

    @property
    def in_words(self) -> str:
        """What a step trains, for a reader: ``depth_6 and depth_2, and 1 of depth_4, depth_3``."""
        names = [network.name for network in self.networks]
        always = [names[place] for place in self._always]
        others = [name for name in names if name not in always]
        drawn = f"{self._count - len(always)} of {', '.join(others)}" if others else ""
        return ", and ".join(filter(None, [" and ".join(always), drawn]))

    @cached_property
    def _whole(self) -> int | None:
        return next((place for place, network in enumerate(self.networks) if network.is_whole), None)

    def _places_of(self, always: Sequence[KeepLayers]) -> list[int]:
        """Return which sub-networks every step trains."""
        depths = self._state.depths
        named = {"whole": 0, "smallest": len(self.networks) - 1}
        names = [network.name for network in self.networks]
        places = []
        for entry in always:
            if isinstance(entry, str) and entry in named:
                places.append(named[entry])
                continue
            name = depth_name(parse_keep_layers(entry, depths), depths)
            if name not in names:
                raise LayerDropConfigError(
                    f"always names {entry!r}, which is none of depths ({', '.join(names)}), 'whole' or 'smallest'; "
                    "list it in depths."
                )
            places.append(names.index(name))
        return sorted(set(places))

    def _check_count(self) -> None:
        always, others = len(self._always), len(self.networks) - len(self._always)
        fewest = always + bool(others)  # or the others would never be trained
        if not fewest <= self._count <= len(self.networks):
            raise LayerDropConfigError(
                f"per_step is {self._count}, but every step trains {always} of {len(self.networks)} sub-networks "
                f"({', '.join(network.name for network in self.networks)}) and some of the other {others}; give from "
                f"{fewest} to {len(self.networks)}, or name fewer in always."
            )


def prepare_depths(model: nn.Module, depth_training: TrainedDepths | None = None) -> DepthPlan:
    """Check that a model can be trained at some depths, and inject LayerDrop at rate 0 where there is none, in place.

    `backward_depths` and `DepthTrainer` call it; a loop of one's own has to before it wraps the model by DDP or FSDP.

    Args:
        model: The model, or what holds it.
        depth_training: Settings or a list of depths. None takes the depths of ``LayerDropConfig.for_depths``.

    Raises:
        DistillationError: If a teacher, or the model's head, does not fit.
        KeepLayersError: If a depth does not fit the model.
        LayerDropConfigError: If a depth is named twice, or the model has none and none are given.
        LayerDropStateError: If the model drops layers besides.
        UnsupportedModelError: If the model cannot be cut to a depth.
    """
    found = injected_models(model)
    if not found:
        if depth_training is None:
            raise _no_depths()
        inject_layerdrop(model, 0.0)
        try:
            return prepare_depths(model, depth_training)
        except Exception:
            remove_layerdrop(model)
            raise
    if len(found) > 1:
        raise LayerDropStateError(
            f"LayerDrop is injected in {len(found)} models of this {type(model).__name__} ({', '.join(found)}), of "
            "which one can be trained at several depths; pass that one."
        )
    root: Any = next(iter(found.values()))
    state: LayerDropState = getattr(root, STATE_ATTRIBUTE)
    known = _plans.get(root)
    if known is not None and known[0] is state and known[1] is depth_training:
        return known[2]
    if not state.drops and state.config.structures != ("layer",):
        inject_layerdrop(root, 0.0)
        state = getattr(root, STATE_ATTRIBUTE)
    plan = DepthPlan(root, DepthTraining.of(_depths_of_config(state) if depth_training is None else depth_training))
    _plans[root] = (state, depth_training, plan)
    return plan


# Neither the state nor the plan holds the model.
_plans: WeakKeyDictionary[nn.Module, tuple[LayerDropState, TrainedDepths | None, DepthPlan]] = WeakKeyDictionary()


def _depths_of_config(state: LayerDropState) -> list[Kept]:
    """Return the sub-networks of ``LayerDropConfig.for_depths``, protected layers included."""
    config = state.config
    if config.depths is None:
        raise _no_depths()
    draws = {
        name: draws_of(
            config.depths, name, depth, config.always_kept(name, depth), config.choice(state.sampler_version)
        )
        for name, depth in state.depths.items()
    }
    if any(len({share for _, share in of_stack}) > 1 for of_stack in draws.values()):
        raise LayerDropConfigError(
            f"The model was injected to draw the depths {describe(config.depths)}, but several depths a step are drawn "
            "alike; give depth_training, where depth_weights weigh their losses."
        )
    rows = zip(*draws.values(), strict=True)
    kept = [{name: _layers_of(mask) for name, (mask, _) in zip(draws, row, strict=True)} for row in rows]
    return [one for place, one in enumerate(kept) if one not in kept[:place]]


def _layers_of(mask: Mask) -> tuple[int, ...]:
    return tuple(layer for layer, runs in enumerate(mask) if runs)


def _no_depths() -> LayerDropConfigError:
    return LayerDropConfigError(
        "No depths are given, and the model was not injected with LayerDropConfig.for_depths; give "
        "depth_training=[12, 6, 3], say."
    )


def _check_state(state: LayerDropState) -> None:
    """Refuse draws that the sub-networks would take the place of without a word."""
    if state.drops and state.config.depths is None:
        raise LayerDropStateError(
            f"The model drops {' and '.join(state.config.structures)}s at rates {state.rates}, but to train given "
            "depths is to draw nothing else: call set_rates(model, 0), or inject LayerDropConfig.for_depths."
        )
    if state.config.depths is not None and state.config.schedule is not None:
        raise LayerDropStateError(
            f"The model was injected with the schedule {state.config.schedule!r}, which moves how often depths are "
            "drawn, but to train several depths a step draws none of them; inject it with schedule=None."
        )
    for name, usual in (("scale", "none"), ("granularity", "batch")):
        if (value := getattr(state.config, name)) != usual:
            raise LayerDropStateError(
                f"The model was injected with {name}={value!r}, which is about drawn layers, but to train several "
                f"depths a step draws none; inject it with {name}={usual!r}."
            )
    if state.config.execution == "mask":
        raise LayerDropStateError(
            "execution='mask' computes every layer, so that a shallow sub-network would cost as much as the whole "
            "model; inject LayerDrop with execution='skip' to train several depths."
        )


def _check_head(model: PreTrainedModel, training: DepthTraining) -> None:
    """Refuse a model that predicts nothing which could be compared."""
    if not training.learns_from_teacher:
        return
    if not has_head(model):
        raise DistillationError(
            f"{type(model).__name__} has no head, and so no logits that a shallow model could learn; load it with a "
            "head, or set distillation_weight=0."
        )
    if model.config.problem_type == "multi_label_classification":
        raise DistillationError(
            "The model gives several labels to a row, whose predictions are not compared; set distillation_weight=0."
        )


def _networks(model: PreTrainedModel, training: DepthTraining) -> list[SubNetwork]:
    """Return the sub-networks that are listed, and the whole model where it is asked for, the largest first."""
    cutter = Cutter(transformers_model(model))
    found: dict[str, SubNetwork] = {}
    for spec, weight in zip(training.depths, training.weights, strict=True):
        network = _network(parse_keep_layers(spec, cutter.depths), cutter, weight)
        if network.name in found:
            raise LayerDropConfigError(
                f"depths names {spec!r} twice ({network.name}); give it more weight by depth_weights."
            )
        found[network.name] = network
    if "whole" in training.always and not any(network.is_whole for network in found.values()):
        whole = _network(parse_keep_layers(None, cutter.depths), cutter, 1.0)
        found[whole.name] = whole
    return sorted(found.values(), key=lambda network: -network.layers)


def _network(kept: Kept, cutter: Cutter, weight: float) -> SubNetwork:
    cutter.check(kept)
    depths = cutter.depths
    return SubNetwork(
        depth_name(kept, depths),
        {name: tuple(layer in layers for layer in range(depths[name])) for name, layers in kept.items()},
        weight,
        all(len(layers) == depths[name] for name, layers in kept.items()),
        sum(map(len, kept.values())),
        # A layer that is left out repeats what it was given, so the numbers are those of the whole model. The last
        # state is what the head reads, in many models after a norm.
        {
            name: [*((layer + 1, layer + 1) for layer in layers[:-1]), (depths[name], depths[name])]
            for name, layers in kept.items()
        },
    )
