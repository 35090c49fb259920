"""What to train of a list of depths: which of them a step takes, and what each learns from. Plain values, no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMED = ("whole", "smallest")

_WEIGHTS = ("label_weight", "distillation_weight", "hidden_weight")


@dataclass(frozen=True, eq=False)
class DepthTraining:
    """Say which depths are trained together, how many of them in a step, and what each learns from.

    The whole model learns from the labels, every other sub-network from the labels and from what the whole model
    predicts on the same batch, which takes no gradient. With the defaults and ``per_step=len(depths)`` it is the loss
    of Starbucks (Zhuang et al., 2024), sum L_d + sum KL(whole || d); the largest and the smallest in every step are the
    sandwich rule of Yu and Huang (2019), and "one deterministic sub-network a depth" is Wang et al. (2020).

    Attributes:
        depths: The sub-networks, each in any form of ``keep_layers``: ``[12, 6, 4, 3]``, ``[[0, 5, 11], "::2"]``,
            ``[{"encoder": 6, "decoder": 3}]``.
        per_step: How many of them a step trains, those of ``always`` included; the others are drawn alike, and differ
            between the micro-steps of one step. None: those of ``always`` and one more.
        always: Which ones every step trains: ``"whole"`` (the whole model, also if it is not listed), ``"smallest"``,
            or entries of ``depths``.
        whole_every: The whole model is trained in every so many-th step. In a step without it, and without a
            ``teacher``, the others learn from the labels alone.
        temperature: Predictions are compared at this temperature.
        label_weight: Weight of the loss on the labels, of all but the whole model.
        distillation_weight: Weight of the divergence from the teacher's predictions.
        hidden_weight: Weight of the cosine distance from the teacher's hidden states, layer by layer.
        depth_weights: A weight for each depth: as many numbers as ``depths``, or some by depth as in ``{3: 2.0}``.
        teacher: A frozen model in place of the whole model of the same step: it needs memory of its own.
        keep_predictions: Whether its predictions are kept for when a row comes again, in memory or in a folder that is
            named. They are those of the first time, so that inputs that are masked at random gain nothing.
        seed: Seed of what is drawn; None takes that of the model's LayerDrop, which is Trainer's.

    Raises:
        LayerDropConfigError: If a value is not allowed; the message names what is.
    """

    depths: Sequence[KeepLayers]
    per_step: int | None = None
    always: Sequence[KeepLayers] = NAMED
    whole_every: int = 1
    temperature: float = 1.0
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    hidden_weight: float = 0.0
    depth_weights: Sequence[float] | Mapping[int, float] | None = None
    teacher: PreTrainedModel | None = None
    keep_predictions: bool | str | os.PathLike[str] = True
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; what depends on the model is refused with it."""
        for name in ("depths", "always"):
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        if not self.depths:
            raise LayerDropConfigError("depths is empty; list some, such as [12, 6, 3].")
        counts = {"whole_every": self.whole_every, **({} if self.per_step is None else {"per_step": self.per_step})}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LayerDropConfigError(f"{name} is {value!r}; it must be a whole number from 1 on.")
        for name in ("temperature", *_WEIGHTS):
            _check_number(name, getattr(self, name), above_zero=name == "temperature")
        if not any(getattr(self, name) for name in _WEIGHTS):
            raise LayerDropConfigError(f"{', '.join(_WEIGHTS)} are all 0; set at least one above 0.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise LayerDropConfigError(f"seed is {self.seed!r}; it must be a whole number, 0 or more, or None.")
        if not isinstance(self.keep_predictions, bool | str | os.PathLike):
            raise LayerDropConfigError(f"keep_predictions is {self.keep_predictions!r}; give True, False or a folder.")
        if self.hidden_weight and not isinstance(self.keep_predictions, bool):
            raise LayerDropConfigError(
                f"keep_predictions is {str(self.keep_predictions)!r}, but hidden states are not kept; set "
                "hidden_weight=0, or keep_predictions=False."
            )
        self._check_steps()
        self._check_weights()

    def _check_steps(self) -> None:
        has_whole = "whole" in self.always
        if self.whole_every > 1 and not has_whole:
            raise LayerDropConfigError(
                f"whole_every is {self.whole_every}, but always is {list(self.always)!r}; add 'whole' to it."
            )
        if self.whole_every > 1 and (self.per_step == 1 or (self.per_step is None and len(self.depths) == 1)):
            raise LayerDropConfigError(
                f"whole_every is {self.whole_every}, which leaves the other steps nothing to train; set per_step "
                "above 1, and list more depths."
            )
        if self.learns_from_teacher and self.teacher is None and not has_whole:
            raise LayerDropConfigError(
                f"always is {list(self.always)!r}, without the whole model that the others learn from; add 'whole', "
                "give a teacher, or set distillation_weight=0 and hidden_weight=0."
            )
        if not self.label_weight and self.teacher is None and self.whole_every > 1:
            raise LayerDropConfigError(
                f"label_weight is 0 and whole_every is {self.whole_every}: in steps without the whole model there is "
                "nothing to learn from; give a teacher, or a label_weight above 0."
            )

    def _check_weights(self) -> None:
        weights = self.depth_weights
        if weights is None:
            return
        if not isinstance(weights, Mapping):
            object.__setattr__(self, "depth_weights", weights := _listed("depth_weights", weights))
            if len(weights) != len(self.depths):
                raise LayerDropConfigError(
                    f"depth_weights has {len(weights)} numbers and depths has {len(self.depths)}; give one each."
                )
        elif unknown := [depth for depth in weights if depth not in self.depths]:
            raise LayerDropConfigError(
                f"depth_weights names {unknown[0]!r}, which is none of depths, {list(self.depths)!r}; list it there."
            )
        for value in weights.values() if isinstance(weights, Mapping) else weights:
            _check_number("depth_weights", value, above_zero=True)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether anything is learned from predictions or hidden states."""
        return bool(self.distillation_weight or self.hidden_weight)

    @property
    def weights(self) -> list[float]:
        """The weight of each depth, in their order."""
        given = self.depth_weights
        if given is None:
            return [1.0] * len(self.depths)
        if isinstance(given, Mapping):
            by_depth: Mapping[Any, float] = given
            return [float(by_depth[depth]) if _is_key(depth, given) else 1.0 for depth in self.depths]
        return [float(weight) for weight in given]

    @classmethod
    def of(cls, value: TrainedDepths) -> DepthTraining:
        """Accept what ``depth_training=`` accepts: the settings, their dict, or a list of depths."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            allowed = [field.name for field in fields(cls)]
            if unknown := sorted(set(map(str, value)) - set(allowed)):
                raise LayerDropConfigError(
                    f"DepthTraining has no setting {unknown[0]!r}; its settings are {', '.join(allowed)}."
                )
            if "depths" not in value:
                raise LayerDropConfigError(f"depth_training is {dict(value)!r}, without depths; add some.")
            return cls(**value)
        return cls(_listed("depth_training", value))


TrainedDepths: TypeAlias = DepthTraining | Mapping[str, Any] | Sequence[KeepLayers]
"""What ``depth_training=`` accepts."""


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise LayerDropConfigError(f"{name} is {value!r}; give a list, such as [12, 6, 3].")
    return tuple(value)


def _is_key(depth: Any, weights: Mapping[Any, float]) -> bool:
    return any(type(depth) is type(key) and depth == key for key in weights)


def _check_number(name: str, value: Any, *, above_zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (above_zero and value == 0):
        raise LayerDropConfigError(
            f"{name} is {value!r}; it must be a finite number{' above 0' if above_zero else ', 0 or more'}."
        )
