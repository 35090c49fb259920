"""Whether layers add to their input is seen by running them on the meta device, and not from a list of names."""

from __future__ import annotations

import pytest

from architectures.tiny import build_tiny
from hf_layerdrop.architectures.residuals import check_residuals
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.errors import LayerDropConfigError

PRE_NORM = ["gemma2", "phi", "falcon", "modernbert", "pegasus", "xlm-roberta-xl", "deit", "clip", "qwen2_moe", "bloom"]
POST_NORM = ["electra", "distilbert", "marian", "mpnet", "openai-gpt"]
BY_A_FIELD = {
    "opt": ({"do_layer_norm_before": True}, {"do_layer_norm_before": False}),
    "bloom": ({}, {"apply_residual_connection_post_layernorm": True}),
    "prophetnet": (None, {}),
}


def check(model_type: str, **settings: object) -> None:
    model = build_tiny(model_type, **settings).model
    check_residuals(model, find_stacks(model))


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_layers_that_add(model_type: str) -> None:
    check(model_type)


@pytest.mark.parametrize("model_type", POST_NORM)
def test_layers_that_normalise_the_sum(model_type: str) -> None:
    with pytest.raises(LayerDropConfigError, match="post-norm"):
        check(model_type)


@pytest.mark.parametrize("model_type", BY_A_FIELD)
def test_one_family_may_have_both(model_type: str) -> None:
    before, after = BY_A_FIELD[model_type]
    if before is not None:
        check(model_type, **before)
    with pytest.raises(LayerDropConfigError, match="post-norm"):
        check(model_type, **after)


@pytest.mark.parametrize("model_type", ["roformer", "whisper"])
def test_what_cannot_be_tried_is_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(LayerDropConfigError, match=r"could not be tried \(.+\); give scale='none'"):
        check(model_type)


def test_nothing_of_the_model_is_changed() -> None:
    model = build_tiny("llama").model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    check_residuals(model, find_stacks(model))
    assert all(weight.equal(before[name]) and not weight.is_meta for name, weight in model.state_dict().items())
    assert "forward" not in vars(model.model.layers[0].mlp)
