"""Score by a function of the model that the search cannot look into: candidates run one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, SupportsFloat, TypeAlias

import torch
from transformers import PreTrainedModel

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.divided import Done
from hf_layerdrop.evaluation.encoder_sharing import encoder_memory, shared_encoder
from hf_layerdrop.evaluation.model_or_trainer import eval_mode
from hf_layerdrop.evaluation.parameter_counts import parameters_of
from hf_layerdrop.evaluation.prefix_sharing import in_walking_order
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.space import Layers

Evaluate: TypeAlias = Callable[[Any], Mapping[str, SupportsFloat] | SupportsFloat]


class FunctionMeasure:
    """Measure by calling ``evaluate(model)`` with the model cut in place, in eval mode and without gradients.

    What the encoder of an encoder-decoder gives is remembered, up to the memory limit, while the encoder's layers stay
    the same. A number alone is called ``name``.
    """

    def __init__(
        self, model: PreTrainedModel, cutter: Cutter, evaluate: Evaluate, name: str, memory_limit: int
    ) -> None:
        self._model = model
        self._cutter = cutter
        self._evaluate = evaluate
        self._name = name
        self._encoder_memory = encoder_memory(cutter, memory_limit)
        self._layer_forwards = 0

    def __call__(self, kept: Sequence[Layers], done: Done) -> None:
        """Measure the sub-networks one by one, and hand over each record."""
        with ExitStack() as undo:
            undo.enter_context(shared_encoder(self._cutter, self._model, self._encoder_memory))
            undo.enter_context(eval_mode(self._model))
            undo.enter_context(torch.no_grad())
            for hook in self._counting_hooks():
                undo.callback(hook.remove)
            for place in in_walking_order(kept):
                done([self._measured(kept[place])])

    def _measured(self, kept: Layers) -> SubNetworkResult:
        self._layer_forwards = 0
        with self._cutter.sub_network(kept):
            value = self._evaluate(self._model)
        return SubNetworkResult(
            keep_layers=dict(kept),
            parameters=parameters_of(self._cutter, self._model, kept),
            metrics=self._as_metrics(value),
            seconds_per_batch=None,
            layer_forwards=self._layer_forwards,
        )

    def _counting_hooks(self) -> list[Any]:
        return [layer.register_forward_hook(self._count) for layers in self._cutter.lists.values() for layer in layers]

    def _count(self, *_: Any) -> None:
        self._layer_forwards += 1

    def _as_metrics(self, value: Any) -> dict[str, float]:
        try:
            if isinstance(value, Mapping):
                return {name: float(number) for name, number in value.items()}
            return {self._name: float(value)}
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"evaluate returned {value!r:.80}: it has to return a number, or a dict of numbers by name."
            ) from error
