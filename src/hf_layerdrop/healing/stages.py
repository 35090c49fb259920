"""The ways to heal a cut model, each a step on a model in memory: a map, LoRA, all weights, distillation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import SaveStrategy

from hf_layerdrop.distillation.trainer import DistillationMixin
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.healing.config import HealingConfig, Kept
from hf_layerdrop.healing.linear_map import MergedMaps, merge_linear_maps
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_kept
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.before_first_step import before_first_step
from hf_layerdrop.training.callbacks import StartCallback
from hf_layerdrop.training.train import measure_depths
from hf_layerdrop.training.trainers import GeneratingTrainer, TaskTrainer, build_trainer

if TYPE_CHECKING:
    from datasets import Dataset


class _Distilling(DistillationMixin, TaskTrainer):
    """A Trainer for tasks whose predictions are scored against whole rows."""


class _DistillingText(DistillationMixin, GeneratingTrainer):
    """A Trainer for tasks that are scored on generated text."""


class Workshop:
    """Measure models of one task, and heal them; what Trainer writes goes to a folder that is nobody's."""

    def __init__(
        self,
        data: TaskData,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        healing: HealingConfig,
        folder: Path,
    ) -> None:
        self._data, self._tokenizer, self._healing = data, tokenizer, healing
        self._arguments = copy.copy(arguments)
        self._arguments.output_dir, self._arguments.save_strategy = str(folder), SaveStrategy.NO
        if not accelerator.is_available():
            self._arguments.dataloader_pin_memory = False  # torch would warn of it at every data loader
        self._folder = folder

    def trainer_of(self, model: PreTrainedModel) -> Trainer:
        """Return a Trainer that measures a model."""
        return build_trainer(self._data, model, self._tokenizer, copy.copy(self._arguments))

    def measure(self, model: PreTrainedModel, depths: Sequence[Any] = ("all",)) -> list[SubNetworkResult]:
        """Measure a model on the validation sets, whole or as sub-networks."""
        return measure_depths(self.trainer_of(model), self._data, list(depths))

    def heal(
        self, method: str, cut: PreTrainedModel, before: PreTrainedModel, whole: PreTrainedModel, kept: Kept
    ) -> tuple[PreTrainedModel, str, bool]:
        """Heal a cut model by one method; return it, what is to be said, and whether a weight was changed.

        Args:
            method: Its name.
            cut: The cut model, changed in place.
            before: What it was cut out of in this round.
            whole: The model before all cuts.
            kept: Which layers of that one it has.
        """
        if method == "map":
            return cut, *self._map(cut, before)
        if method == "lora":
            return self._lora(cut), "", True
        if method == "whole":
            self._train(cut)
        else:
            usual = _Distilling if self._data.task.generation is None else _DistillingText
            self._train(cut, trainer_class=usual, teacher=whole, keep_layers=kept)
        return cut, "", True

    def _map(self, cut: PreTrainedModel, before: PreTrainedModel) -> tuple[str, bool]:
        """Merge the maps, if they lower the loss of rows that they were not fitted on; say what came of it."""
        trainer = self.trainer_of(cut)
        fitted, held_out = (trainer.get_eval_dataloader(rows) for rows in self._rows())
        losses = [_loss(cut, held_out)]
        maps = merge_linear_maps(cut, before, fitted, ridge=self._healing.ridge)
        losses.append(_loss(cut, held_out))
        helps = losses[1] < losses[0]
        if not helps:
            maps.undo()
        verdict = "kept" if helps else "not kept, and the model is left as it was"
        told = f"loss on held-out rows {losses[0]:.4f} without it, {losses[1]:.4f} with it"
        return f"The map was {verdict}: {told}; {_said(maps)}.", helps

    def _rows(self) -> tuple[Dataset, Dataset]:
        """Return training rows to fit a map on, and others that decide whether it helps."""
        assert self._data.train is not None
        rows = self._data.train.shuffle(seed=self._arguments.seed)
        count = min(self._healing.rows, len(rows) // 2)
        return rows.select(range(count)), rows.select(range(count, 2 * count))

    def _lora(self, cut: PreTrainedModel) -> PreTrainedModel:
        from peft import LoraConfig, get_peft_model

        set_seed(self._arguments.seed)  # as Trainer does: the first matrices are drawn
        rank = self._healing.lora_rank
        adapted: Any = get_peft_model(cut, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        self._train(adapted, rate=self._arguments.learning_rate * self._healing.lora_factor)
        return adapted.merge_and_unload().requires_grad_(True)

    def _train(self, model: PreTrainedModel, rate: float | None = None, **more: Any) -> None:
        arguments = copy.copy(self._arguments)
        arguments.learning_rate = rate or arguments.learning_rate
        start = StartCallback()
        with _in_full_precision(model), before_first_step(self._folder, lambda: start.begun):
            trainer = build_trainer(self._data, model, self._tokenizer, arguments, callbacks=[start], **more)
            trainer.train()
        model.eval()


@contextmanager
def _in_full_precision(model: PreTrainedModel) -> Iterator[None]:
    """Hold weights of 16 bits in float32 inside the block: steps as small as healing's would be lost in rounding.

    Each of them goes back to its own type. Buffers are not touched: what a model keeps in float32 (rotary frequencies)
    would be rounded on the way back, and is not in the checkpoint.
    """
    halves = () if getattr(model, "is_quantized", False) else (torch.float16, torch.bfloat16)
    types = {weight: weight.dtype for weight in model.parameters() if weight.dtype in halves}
    for weight in types:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, dtype in types.items():
            weight.data = weight.data.to(dtype)


def _loss(model: PreTrainedModel, rows: Any) -> float:
    (found,) = evaluate_depths(model, rows, depths=["all"], metric="loss", progress=False)
    return found.metrics["loss"]


def _said(maps: MergedMaps) -> str:
    shares = [f"{one.explained:.0%} of layers {format_kept({'': one.run.removed})}" for one in maps.maps]
    unmapped = [f"{layer}" for layers in maps.unmapped.values() for layer in layers]
    left = f"; none stands for layers {', '.join(unmapped)}, before the first kept one" if unmapped else ""
    return f"on its own rows it gives {', '.join(shares)}{left}"
