"""A step that trains several depths of a BERT, and the same work by a model that is cut to each of them in turn."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification

from benchmarks._contenders import Batch, Size, Step, batch_of, bert
from benchmarks._rounds import CLOCKS
from hf_layerdrop import DepthTraining, backward_depths, inject_layerdrop, parse_keep_layers, sub_network
from hf_layerdrop.distillation.losses import soft_loss


def several_depths(size: Size) -> dict[str, Step]:
    """Train the whole model, a half, a third and a quarter of it in each step, the shallow ones on its predictions."""
    depths = sorted({max(1, size.layers // share) for share in (1, 2, 3, 4)}, reverse=True)
    batch = batch_of(size)
    return {"LayerDrop": _Ours(bert(size), batch, depths), "cut": _Cut(bert(size), batch, depths)}


class _Ours(Step):
    """`backward_depths` and AdamW."""

    def __init__(self, model: nn.Module, batch: Batch, depths: list[int]) -> None:
        super().__init__(inject_layerdrop(model, 0.0), batch)
        self._training, self._step = DepthTraining(depths, per_step=len(depths)), 0

    def prepare(self, step: int) -> None:
        """Note the step."""
        self._step = step

    def run(self) -> torch.Tensor:
        """Step, and return the loss."""
        losses = backward_depths(self.model, self.batch, self._training, step=self._step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses["loss"]


class _Cut(Step):
    """The ideal: a plain BERT whose list of layers is another for each depth, and AdamW at the end."""

    def __init__(self, model: BertForSequenceClassification, batch: Batch, depths: list[int]) -> None:
        super().__init__(model, batch)
        layers = list(model.bert.encoder.layer)
        kept = [parse_keep_layers(depth, {"encoder": len(layers)})["encoder"] for depth in depths]
        self._lists = [nn.ModuleList(layers[index] for index in indices) for indices in kept]

    def run(self) -> torch.Tensor:
        """Step, and return the loss."""
        targets, losses = None, []
        for layers in self._lists:
            self.model.bert.encoder.layer = layers
            outputs = self.model(**self.batch)
            loss = outputs.loss
            if targets is None:
                targets = outputs.logits.detach()
                counts = torch.ones(len(targets), dtype=torch.bool)
            else:
                loss = loss + soft_loss(outputs.logits, targets, counts, 1.0)
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()


def switch_ms(size: Size, times: int, clock: str) -> float:
    """Return the milliseconds, the median, to enter and leave a sub-network of a model that was entered before."""
    model, now, found = bert(size), CLOCKS[clock], []
    for _ in range(times + 3):
        start: Any = now()
        with sub_network(model, max(1, size.layers // 2)):
            pass
        found.append(1000 * (now() - start))
    return median(found[3:])
