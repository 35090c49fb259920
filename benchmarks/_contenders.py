"""Models that do the same training step: untouched, with LayerDrop, physically cut, and designs used elsewhere.

The designs of others are written anew here, in their shortest form, for comparison; they are named for what they are.
All draw the layers of a step beforehand or from the same numbers, so that in one round all of them run the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification

from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, remove_layerdrop, set_rates, set_step
from hf_layerdrop.injection.injected import find_injected

VOCABULARY = 1000
Mask = Sequence[bool]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Size of the model and of its batches."""

    layers: int = 12
    hidden: int = 256
    rows: int = 8
    length: int = 64

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.hidden}, batches of {self.rows} x {self.length} tokens"


def bert(size: Size, seed: int = 0) -> BertForSequenceClassification:
    """Build a BERT with random weights; other dropout is off, so that two models that do the same stay equal."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // 64),
        intermediate_size=4 * size.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).train()


def bart(size: Size, layerdrop: float, seed: int = 0) -> BartForConditionalGeneration:
    """Build a BART with half of the layers in each stack."""
    torch.manual_seed(seed)
    heads, feed_forward = max(1, size.hidden // 64), 4 * size.hidden
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=size.hidden,
        encoder_layers=size.layers // 2,
        decoder_layers=size.layers // 2,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=feed_forward,
        max_position_embeddings=size.length,
        dropout=0.0,
        encoder_layerdrop=layerdrop,
        decoder_layerdrop=layerdrop,
    )
    return BartForConditionalGeneration(config).train()


def batch_of(size: Size, *, tokens_as_labels: bool = False, seed: int = 0) -> Batch:
    """Return random tokens, with two classes or the tokens themselves as labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, VOCABULARY, (size.rows, size.length), generator=generator)
    labels = tokens if tokens_as_labels else torch.randint(0, 2, (size.rows,), generator=generator)
    return {"input_ids": tokens, "labels": labels}


class Step:
    """One training step of a model: forward, backward, AdamW. By itself, of the model as it is."""

    def __init__(
        self, model: nn.Module, batch: Batch, prepare: Callable[[int], None] | None = None, lr: float = 1e-5
    ) -> None:
        self.model, self.batch = model, batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self._prepare = prepare

    def prepare(self, step: int) -> None:
        """Call what was given for it."""
        if self._prepare is not None:
            self._prepare(step)

    def run(self) -> torch.Tensor:
        """Step, and return the loss."""
        loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class CutStep(Step):
    """The ideal: before each step a plain BERT is physically cut to the layers of a mask, and so is its optimizer."""

    def __init__(self, model: BertForSequenceClassification, batch: Batch, mask_of: Callable[[int], Mask]) -> None:
        super().__init__(model, batch)
        self._layers, self._mask_of = list(model.bert.encoder.layer), mask_of

    def prepare(self, step: int) -> None:
        """Take the dropped layers out of the model, and their weights out of the optimizer."""
        kept = [layer for layer, runs in zip(self._layers, self._mask_of(step), strict=True) if runs]
        self.model.bert.encoder.layer = nn.ModuleList(kept)
        self.optimizer.param_groups[0]["params"] = list(self.model.parameters())


def layerdrop_step(
    model: BertForSequenceClassification, batch: Batch, rate: float
) -> tuple[Step, Callable[[int], Mask]]:
    """Inject LayerDrop; return its step, and the masks that it will draw."""
    inject_layerdrop(model, LayerDropConfig(rate, seed=0))

    def mask_of(step: int) -> Mask:
        set_step(model, step)
        return layerdrop_state(model).draws["encoder"].draw()

    return Step(model, batch, lambda step: set_step(model, step)), mask_of


class Pass(Step):
    """Forward and backward alone: where every layer runs in every step, the optimizer steps all of them."""

    def run(self) -> torch.Tensor:
        """Compute gradients, and return the loss."""
        loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.zero_grad()
        return loss.detach()


def row_pass(model: BertForSequenceClassification, batch: Batch, rate: float) -> Pass:
    """Let each row drop its own layers."""
    inject_layerdrop(model, LayerDropConfig(rate, seed=0, granularity="row"))
    return Pass(model, batch, lambda step: set_step(model, step))


def with_and_without(model: nn.Module, batch: Batch, rate: float) -> dict[str, Step]:
    """Return a step with LayerDrop and one without, of the very same model.

    Two models that are built alike differ by more than what is to be seen, by where their memory lies. The learning
    rate is 0, so that the steps of one leave no trace in the losses of the other.
    """

    def inject(step: int) -> None:
        inject_layerdrop(model, LayerDropConfig(rate, seed=0))
        set_step(model, step)

    def remove(step: int) -> None:
        if find_injected(model) is not None:
            remove_layerdrop(model)

    return {"LayerDrop": Step(model, batch, inject, lr=0.0), "untouched": Step(model, batch, remove, lr=0.0)}


def fixed_layerdrop_step(model: nn.Module, batch: Batch, rate: float) -> Step:
    """Inject LayerDrop whose rates in each step are the 0s and 1s that `coins` gives: it draws what the others draw."""
    inject_layerdrop(model, LayerDropConfig(0.0))
    depths = layerdrop_state(model).depths

    def prepare(step: int) -> None:
        numbers = iter(coins(step, sum(depths.values())))
        set_rates(model, {name: [float(next(numbers) < rate) for _ in range(depth)] for name, depth in depths.items()})

    return Step(model, batch, prepare)


def coins(seed: int, count: int) -> list[float]:
    """Return the numbers that ``count`` layers would draw one by one from torch's generator after this seed."""
    torch.manual_seed(seed)
    return [float(torch.rand([])) for _ in range(count)]


def seeded_step(model: nn.Module, batch: Batch) -> Step:
    """Step a model that draws from torch's generator by itself."""
    return Step(model, batch, _seed)


def _seed(step: int) -> None:
    torch.manual_seed(step)


class LayerWrapper(nn.Module):
    """A per-layer wrapper: a module around each layer that throws a coin (weight names change).

    Attributes:
        same_work: Whether a step does what a step of LayerDrop does at the same draws, to the bit.
    """

    same_work = True

    def __init__(self, layer: nn.Module, rate: float) -> None:
        super().__init__()
        self.layer, self.rate = layer, rate

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the layer, or hand the input on."""
        if self.training and torch.rand([]) < self.rate:
            return hidden_states
        return self.layer(hidden_states, *args, **kwargs)


class ComputeAndDiscard(LayerWrapper):
    """Every layer is computed, forward and backward, and a dropped one's output is thrown away (as in fairseq2)."""

    same_work = False  # AdamW moves a dropped layer, whose gradients are zeros

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the layer; use it or not."""
        output = self.layer(hidden_states, *args, **kwargs)
        return _Discard.apply(hidden_states, output) if self.training and torch.rand([]) < self.rate else output


class SampleWrapper(LayerWrapper):
    """Each row of the batch throws its own coin, and a layer runs on the rows that keep it (as in torchtune)."""

    same_work = False

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the layer on some rows, and put them back between the others."""
        rows = len(hidden_states)
        kept = (torch.rand(rows) >= self.rate).nonzero().squeeze(1)

        def of_kept(value: Any) -> Any:
            return value[kept] if isinstance(value, torch.Tensor) and value.dim() and len(value) == rows else value

        if not len(kept):
            return hidden_states
        output = self.layer(hidden_states[kept], *map(of_kept, args), **{k: of_kept(v) for k, v in kwargs.items()})
        return hidden_states.index_copy(0, kept, output)


class _Discard(torch.autograd.Function):
    """The input, with a gradient of zero for the output that is not used."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, torch.zeros_like(gradient)


DESIGNS = {
    "per-layer wrapper": LayerWrapper,
    "compute and discard": ComputeAndDiscard,
    "wrapper that drops by row": SampleWrapper,
}


def wrapped(model: BertForSequenceClassification, design: type[LayerWrapper], rate: float) -> nn.Module:
    """Put a wrapper around each layer of a BERT, in place."""
    model.bert.encoder.layer = nn.ModuleList(design(layer, rate) for layer in model.bert.encoder.layer)
    return model.train()
