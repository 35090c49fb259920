"""What LayerDrop adds to a forward, in microseconds, beside the untouched model: layers that do next to nothing.

On a fast device a layer is as short as the time in which Python launches it, and what is asked for each layer shows.
So the layers here return what they are given: what is left is the calls. Both sides are the very same model, with and
without LayerDrop in turns; a round times many forwards of each, and the median is over the differences of rounds.
``train`` is a training forward whose layers all run, ``dropping`` one at rate 0.5 (of which what a dropped layer saves
is part), ``rate 0`` and ``eval`` drop nothing. The draw is a part of ``train``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks._rounds import Contender, time_rounds

DEPTHS = (6, 12, 24, 48, 96)
FORWARDS = 20  # in a round
ALL_RUN = 1e-9  # a rate at which layers are drawn, and none is dropped
MODES = {"train": (ALL_RUN, True), "dropping": (0.5, True), "rate 0": (0.0, True), "eval": (0.5, False)}
AT_MOST = (25.0, 1.5)  # microseconds a forward, and a layer: the bound of ``train``


def run(rounds: int = 60, clock: str = "cpu", short: bool = False) -> dict[str, Any]:
    """Measure all depths; ``short`` shows in seconds that it works, and nothing else."""
    import torch

    torch.set_num_threads(1)
    depths, rounds = (DEPTHS[:2], 3) if short else (DEPTHS, rounds)
    print("| layers | " + " | ".join(f"{mode}, us" for mode in MODES) + " | of it the draw, us | bound of train, us |")
    print("| ---: " * (len(MODES) + 3) + "|")
    found = {}
    for depth in depths:
        model = _model(depth)
        added = {mode: _added(model, *setting, rounds, clock) for mode, setting in MODES.items()}
        found[depth] = {**added, "draw": _draw(model), "bound": AT_MOST[0] + AT_MOST[1] * depth}
        print(f"| {depth} | " + " | ".join(f"{value:.1f}" for value in found[depth].values()) + " |", flush=True)
    return {
        "added_us": found,
        "met": all(values["train"] <= values["bound"] for values in found.values()),
        "rounds": rounds,
        "clock": clock,
        "short": short,
    }


def _added(model: Any, rate: float, training: bool, rounds: int, clock: str) -> float:
    """Return what LayerDrop adds to a forward, in microseconds."""
    contenders: dict[str, Contender] = {
        "with": _Forwards(model, rate, training),
        "without": _Forwards(model, None, training),
    }
    times = time_rounds(contenders, rounds, clock=clock)
    return 1000 * median(one - other for one, other in zip(times["with"], times["without"], strict=True)) / FORWARDS


def _draw(model: Any) -> float:
    """Return what the pure function from rates and counter to a mask takes, in microseconds."""
    from hf_layerdrop import inject_layerdrop, layerdrop_state, remove_layerdrop

    draw = layerdrop_state(inject_layerdrop(model, ALL_RUN)).draws["encoder"]
    seconds = [_timed(draw.draw) for _ in range(500)]
    remove_layerdrop(model)
    return 1e6 * median(seconds)


def _timed(function: Callable[[], Any]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


class _Forwards:
    """Some forwards of a model with LayerDrop at a rate, or (None) without."""

    def __init__(self, model: Any, rate: float | None, training: bool) -> None:
        self.model, self.rate, self.training = model, rate, training

    def prepare(self, step: int) -> None:
        """Inject or remove, and let the interpreter get used to it."""
        from hf_layerdrop import inject_layerdrop, remove_layerdrop
        from hf_layerdrop.injection.injected import find_injected

        if find_injected(self.model) is not None:
            remove_layerdrop(self.model)
        if self.rate is not None:
            inject_layerdrop(self.model, self.rate)
        self.model.train(self.training)
        self.run()

    def run(self) -> Any:
        """Run them; in eval mode without gradients, as evaluations do."""
        import torch

        with ExitStack() as undo:
            if not self.training:
                undo.enter_context(torch.no_grad())
            for _ in range(FORWARDS):
                self.model(self.model.hidden_states)


def _model(depth: int) -> Any:
    """Build a transformers model around layers that hand on what they get, called as BERT calls its layers."""
    import torch
    from torch import nn
    from transformers import BertConfig, PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.output = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            return hidden_states

    class Encoder(nn.Module):
        def __init__(self, config: BertConfig) -> None:
            super().__init__()
            self.config = config
            self.layer = nn.ModuleList(Layer() for _ in range(config.num_hidden_layers))

        def forward(self, hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            for layer in self.layer:
                hidden_states = layer(hidden_states, attention_mask, **kwargs)
            return hidden_states

    class Model(PreTrainedModel):
        config_class = BertConfig

        def __init__(self, config: BertConfig) -> None:
            super().__init__(config)
            self.hidden_states = nn.Parameter(torch.ones(1, 1, 2))  # as of embeddings that are trained
            self.encoder = Encoder(config)
            self.post_init()

        def forward(self, hidden_states: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
            return self.encoder(hidden_states, attention_mask, use_cache=use_cache)

    return Model(BertConfig(num_hidden_layers=depth))
