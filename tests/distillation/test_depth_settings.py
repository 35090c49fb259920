"""What cannot be meant is refused in one sentence, before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from conftest import build
from depth_models import labelled, model_of
from hf_layerdrop import DepthTraining, LayerDropConfig, backward_depths, inject_layerdrop, prepare_depths
from hf_layerdrop.errors import (
    DistillationError,
    KeepLayersError,
    LayerDropConfigError,
    LayerDropError,
    LayerDropStateError,
    UnsupportedModelError,
)
from hf_layerdrop.injection.injected import find_injected

CLASSIFIER = "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"depths": []}, "depths is empty"),
        ({"depths": "63"}, "depths is '63'"),
        ({"depths": 6}, "depths is 6"),
        ({"whole_every": 0}, "whole_every is 0"),
        ({"whole_every": 1.5}, "whole_every is 1.5"),
        ({"whole_every": 2, "always": ["smallest"]}, "add 'whole'"),
        ({"whole_every": 2, "per_step": 1, "always": ["whole"]}, "nothing to train"),
        ({"per_step": 0}, "per_step is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"distillation_weight": -1.0}, "distillation_weight is -1.0"),
        ({"hidden_weight": float("nan")}, "hidden_weight is nan"),
        ({"label_weight": 0, "distillation_weight": 0}, "all 0"),
        ({"label_weight": 0, "whole_every": 2}, "nothing to learn from"),
        ({"always": ["smallest"]}, "without the whole model"),
        ({"always": "whole"}, "always is 'whole'"),
        ({"depth_weights": [1.0]}, "depth_weights has 1 numbers"),
        ({"depth_weights": {5: 1.0}}, "names 5"),
        ({"depth_weights": [1.0, 0.0]}, "depth_weights is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"keep_predictions": 3}, "keep_predictions is 3"),
        ({"keep_predictions": "here", "hidden_weight": 1.0}, "hidden states are not kept"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LayerDropConfigError, match=said):
        DepthTraining(**{"depths": [4, 2], **settings})


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ([9, 2], KeepLayersError, "9"),
        ([0], KeepLayersError, "0"),
        ([4, 2, 2], LayerDropConfigError, "names 2 twice"),
        ([4, [0, 3], 2], LayerDropConfigError, "names 2 twice"),
        ([[0, 7]], KeepLayersError, "7"),
        (["every_third"], KeepLayersError, "every_third"),
        (DepthTraining([4, 2], per_step=3), LayerDropConfigError, "per_step is 3.*from 2 to 2"),
        (DepthTraining([4, 3, 2], per_step=1), LayerDropConfigError, "per_step is 1.*from 3 to 3"),
        (DepthTraining([4, 3, 2], per_step=2), LayerDropConfigError, "some of the other 1"),
        (DepthTraining([4, 2], always=["whole", 3]), LayerDropConfigError, "always names 3"),
        ({"depths": [4], "per_stp": 2}, LayerDropConfigError, "no setting 'per_stp'"),
        ({"per_step": 2}, LayerDropConfigError, "without depths"),
        (None, LayerDropConfigError, "No depths are given"),
    ],
)
def test_depths_that_do_not_fit_the_model(given: Any, kind: type[LayerDropError], said: str) -> None:
    model = model_of(CLASSIFIER)
    with pytest.raises(kind, match=said):
        prepare_depths(model, given)
    assert find_injected(model) is None


def teacher(**changes: Any) -> PreTrainedModel:
    return build(CLASSIFIER, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 61}, "vocab_size 61 and the student 60"),
        ({"num_labels": 3}, "num_labels 3 and the student 2"),
    ],
)
def test_a_teacher_of_another_vocabulary_or_other_labels(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DistillationError, match=said):
        prepare_depths(model_of(CLASSIFIER), DepthTraining([2], teacher=teacher(**changes)))


def test_a_teacher_that_is_the_model_or_has_other_states() -> None:
    model = model_of(CLASSIFIER)
    with pytest.raises(DistillationError, match="itself"):
        prepare_depths(model, DepthTraining([2], teacher=model))
    other = teacher(num_hidden_layers=3)
    prepare_depths(model, DepthTraining([2], teacher=other))
    with pytest.raises(DistillationError, match="hidden_weight=0"):
        prepare_depths(model, DepthTraining([2], teacher=other, hidden_weight=1.0))


def test_models_whose_predictions_cannot_be_compared() -> None:
    with pytest.raises(DistillationError, match="no head"):
        prepare_depths(build("BertModel"), [4, 2])
    with pytest.raises(DistillationError, match="several labels"):
        prepare_depths(build(CLASSIFIER, problem_type="multi_label_classification"), [4, 2])
    model, batch = build("BertForPreTraining").train(), labelled("RobertaForMaskedLM")
    batch["next_sentence_label"] = torch.tensor([0, 1, 0])
    with pytest.raises(DistillationError, match="distillation_weight=0"):
        backward_depths(model, batch, [4, 2], step=0)
    losses = backward_depths(model, batch, DepthTraining([4, 2], distillation_weight=0.0), step=0)
    assert torch.isfinite(losses["loss"])


def test_models_that_drop_something_besides() -> None:
    model = model_of(CLASSIFIER)
    inject_layerdrop(model, 0.2)
    with pytest.raises(LayerDropStateError, match="set_rates"):
        prepare_depths(model, [4, 2])
    inject_layerdrop(model, LayerDropConfig(0.2, structure="head"))
    with pytest.raises(LayerDropStateError, match="drops heads"):
        prepare_depths(model, [4, 2])
    inject_layerdrop(model, LayerDropConfig(0.0, execution="mask"))
    with pytest.raises(LayerDropStateError, match="execution='skip'"):
        prepare_depths(model, [4, 2])
    inject_layerdrop(model, LayerDropConfig(0.0, structure="head"))
    assert len(prepare_depths(model, [4, 2]).networks) == 2


def test_a_list_with_shares_of_draws_is_no_list_of_weights() -> None:
    model = inject_layerdrop(model_of(CLASSIFIER), LayerDropConfig.for_depths({4: 2, 2: 1}))
    with pytest.raises(LayerDropConfigError, match="depth_weights"):
        prepare_depths(model)
    assert len(prepare_depths(model, [4, 2]).networks) == 2


def test_batches_and_modes_in_which_nothing_would_be_trained() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    with pytest.raises(LayerDropStateError, match=r"model\.train\(\)"):
        backward_depths(model.eval(), batch, [4, 2], step=0)
    del batch["labels"]
    with pytest.raises(DistillationError, match="no labels"):
        backward_depths(model.train(), batch, [4, 2], step=0)


def test_a_model_that_cannot_be_cut_is_left_as_it_is() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    model = AlbertForSequenceClassification(AlbertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(UnsupportedModelError):
        prepare_depths(model, [4, 2])
    assert find_injected(model) is None
