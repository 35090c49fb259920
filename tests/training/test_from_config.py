"""Models from a name such as ``tiny-12x128``: each family that can be made so fits its tokenizer, trains and is cut."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from hf_layerdrop import LayerDropConfig, inject_layerdrop, prune_layers
from hf_layerdrop.architectures.families import SHAPES
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.training.from_config import describe_model

POSITIONS, TEXTS = 32, ["every layer of a deep model can be left out", "what is left is a model too"] * 20


@pytest.mark.parametrize("family", SHAPES)
def test_a_model_from_a_name_fits_its_tokenizer_trains_with_layerdrop_and_is_cut(family):
    described = describe_model(f"{family}-4x16", "SequenceClassification", positions=POSITIONS, vocab_size=300)
    tokenizer = described.make_tokenizer(TEXTS)
    config = described.make_config(tokenizer)
    special = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    assert all(value is None or value < len(tokenizer) for value in special.values()), special
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    assert set(depths_of(model).values()) == {4}
    tokens = torch.full((2, POSITIONS), len(tokenizer) - 1)  # as long as the positions, and the last of the vocabulary
    whole = model(input_ids=tokens).last_hidden_state
    inject_layerdrop(model, LayerDropConfig(0.9))
    assert not torch.allclose(model.train()(input_ids=tokens).last_hidden_state, whole)
    torch.testing.assert_close(model.eval()(input_ids=tokens).last_hidden_state, whole)
    prune_layers(model, dict.fromkeys(depths_of(model), 2))
    assert set(depths_of(model).values()) == {2}
    assert not torch.allclose(model(input_ids=tokens).last_hidden_state, whole)
