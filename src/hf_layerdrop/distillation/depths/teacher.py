"""A frozen teacher for depths: its predictions on a batch, kept for when its rows come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.depths.config import DepthTraining
from hf_layerdrop.distillation.depths.kept_predictions import KeptPredictions, row_keys
from hf_layerdrop.distillation.outputs import names_of_logits
from hf_layerdrop.distillation.student import check_fit
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.model_or_trainer import quiet_eval


class FrozenTeacher:
    """Give the predictions of a model that is not trained: in eval mode, and without filling caches.

    Attributes:
        model: The teacher; a Trainer puts a prepared one in its place.
        layers: How many layers one forward of it runs.
        forwards: How many forwards it has run.

    Raises:
        DistillationError: If its predictions, or hidden states, cannot be compared with those of the student.
    """

    def __init__(self, training: DepthTraining, student: PreTrainedModel) -> None:
        assert training.teacher is not None
        check_fit(student, training.teacher)
        self.model: Any = training.teacher
        self.layers = sum(depths_of(training.teacher).values())
        self.forwards = 0
        self._training = training
        if training.hidden_weight:
            _check_states(student, training.teacher)
        self.kept = None if training.hidden_weight else _kept(training)

    def targets(self, batch: Mapping[str, Any], keys: Sequence[str] | None) -> dict[str, Any]:
        """Return what the teacher says of a batch; it is asked if it was not asked about each of the rows before."""
        if self.kept is None:
            return self._ask(batch)
        keys = row_keys(batch) if keys is None else keys
        if (found := self.kept.find(keys, batch)) is not None:
            return found
        targets = self._ask(batch)
        self.kept.keep(keys, batch, targets)
        return targets

    def _ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self.forwards += 1
        more = {"output_hidden_states": True} if self._training.hidden_weight else {}
        with torch.no_grad(), quiet_eval(self.model):
            outputs = self.model(**batch, **more)
        names = names_of_logits(outputs, weight="distillation_weight")
        return {name: value for name, value in outputs.items() if name in names or name.endswith("hidden_states")}


def _kept(training: DepthTraining) -> KeptPredictions | None:
    place, teacher = training.keep_predictions, training.teacher
    assert teacher is not None
    if not place:
        return None
    forced = teacher.config.is_encoder_decoder
    if place is True:
        return KeptPredictions(teacher_forced=forced)
    return KeptPredictions(Path(place), fingerprint(teacher.state_dict()), teacher_forced=forced)


def _check_states(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    pairs = [(depths_of(model), model.config.get_text_config().hidden_size) for model in (student, teacher)]
    if pairs[0] != pairs[1]:
        raise DistillationError(
            f"The teacher has {pairs[1][0]} layers of width {pairs[1][1]} and the model {pairs[0][0]} of width "
            f"{pairs[0][1]}, so that their hidden states do not answer to each other; set hidden_weight=0."
        )
