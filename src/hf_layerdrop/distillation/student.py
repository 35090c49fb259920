"""A student that is cut out of its teacher, and which of its hidden states answers to which of the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

from transformers import PreTrainedModel

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended_file import recommended_of
from hf_layerdrop.distillation.config import student_layers
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.models.mixin import plain_class
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.samplers.keep_layers import KeepLayers, choice_behind, resolve

Pairs = dict[str, list[tuple[int, int]]]  # by stack: numbers of the student's and the teacher's hidden states


def student_of(teacher: PreTrainedModel, keep_layers: KeepLayers | None = None) -> PreTrainedModel:
    """Return a new model of some of the teacher's layers; the teacher stays as it is.

    Args:
        teacher: The model to learn from, with its head.
        keep_layers: Any form that ``keep_layers`` takes; by default every other layer of each stack, spread evenly.

    Raises:
        DistillationError: If all layers are kept.
        KeepLayersError: If ``keep_layers`` does not fit the teacher.
        UnsupportedModelError: If the teacher has no layers that can be taken out.
    """
    keep_layers = resolve(keep_layers, depths_of(teacher), partial(recommended_of, teacher))
    kept = student_layers(keep_layers, depths_of(teacher))
    student = copy.deepcopy(teacher)
    chosen_by = choice_behind(keep_layers) if keep_layers is not None else {"strategy": "spread"}
    prune_layers(student, kept, **chosen_by)
    return student


def check_fit(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a teacher whose predictions the student's cannot be compared with.

    Raises:
        DistillationError: If heads, vocabularies or numbers of labels differ, or the two are one model.
    """
    names = [plain_class(type(model)).__name__ for model in (teacher, student)]
    if teacher is student:
        raise DistillationError("The teacher is the student itself; make one of its layers, with student_of(teacher).")
    for who, model, name in zip(("teacher", "student"), (teacher, student), names, strict=True):
        if not has_head(model):
            raise DistillationError(f"The {who} is a {name}, which has no head to predict with; load one with a head.")
    if teacher.config.model_type == student.config.model_type and names[0] != names[1]:
        raise DistillationError(f"The teacher is a {names[0]} and the student a {names[1]}; give both the same head.")
    _check_same(student, teacher, "vocab_size", "train both with one tokenizer")
    if student.get_output_embeddings() is None:
        _check_same(student, teacher, "num_labels", "finetune the teacher on the task first")
    if student.config.problem_type == "multi_label_classification":
        raise DistillationError("The student has several labels a row, which distillation does not do; train it alone.")


def has_head(model: PreTrainedModel) -> bool:
    """Tell whether a model predicts anything; T5's class with a head is its own base model."""
    return model.base_model is not model or model.get_output_embeddings() is not None


def match_states(student: PreTrainedModel, teacher: PreTrainedModel, kept: Mapping[str, Sequence[int]] | None) -> Pairs:
    """Return which hidden states are compared, by stack.

    Args:
        student: The student.
        teacher: The teacher.
        kept: The teacher's layers that the student began with; None takes what the student's config says.

    Raises:
        DistillationError: If the layers do not fit the two models, or their hidden states differ in width.
    """
    _check_same(student, teacher, "hidden_size", "set hidden_weight=0 to compare predictions alone")
    depths, wanted = depths_of(teacher), depths_of(student)
    if kept is None:
        saved = saved_provenance(student.config)
        same = {stack: tuple(range(depth)) for stack, depth in wanted.items()} if wanted == depths else {}
        kept = saved.get("keep_layers") or same
    fits = all(max(layers, default=0) < depths.get(stack, 0) for stack, layers in kept.items())
    if not fits or {stack: len(layers) for stack, layers in kept.items()} != wanted:
        raise DistillationError(
            f"The student has {wanted} layers and the teacher {depths}, but which of them answer to each other is not "
            "known: make the student with student_of(teacher, keep_layers), or set hidden_weight=0."
        )
    return {stack: matched(layers, depths[stack]) for stack, layers in kept.items()}


def matched(kept: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Pair the embeddings, each layer's output with that of the layer it came from, and the final states.

    State 0 is what goes into the first layer. The last pair is what the head reads, whichever layer it came from: in
    many models it alone is normalized.
    """
    inner = [(place, layer + 1) for place, layer in enumerate(kept[:-1], 1)]
    return [(0, 0), *inner, (len(kept), depth)]


def _check_same(student: PreTrainedModel, teacher: PreTrainedModel, field: str, next_step: str) -> None:
    own, other = (getattr(model.config, field, None) for model in (student, teacher))
    if own != other:
        raise DistillationError(f"The teacher has {field} {other} and the student {own}: {next_step}.")
