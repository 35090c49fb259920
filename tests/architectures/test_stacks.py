"""Stacks are found by looking, in every head, and what cannot be cut is refused with its reason."""

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, BertPreTrainedModel

from conftest import build, layers_of
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.errors import UnsupportedModelError


def expected_stacks(head):
    """Tell what a reader of transformers' source would answer."""
    if head == "BartForCausalLM":
        return {"decoder": ("model.decoder.layers", "decoder_layers")}
    if head.startswith("Bart"):
        prefix = "" if head == "BartModel" else "model."
        return {name: (f"{prefix}{name}.layers", f"{name}_layers") for name in ("encoder", "decoder")}
    prefix = (
        ""
        if head.endswith("Model") and head != "BertLMHeadModel"
        else ("bert." if head.startswith("Bert") else "roberta.")
    )
    return {"encoder": (f"{prefix}encoder.layer", "num_hidden_layers")}


def test_the_stacks_of_every_head_are_found(any_head):
    model = build(any_head)
    stacks = find_stacks(model)
    assert {name: (stack.path, stack.depth_field) for name, stack in stacks.items()} == expected_stacks(any_head)
    for stack in stacks.values():
        assert stack.depth == 4
        assert stack.layers(model) is model.get_submodule(stack.path)
        assert stack.layers(model) is getattr(stack.owner(model), stack.path.rpartition(".")[2])


def test_depths_are_those_of_the_model_at_hand():
    assert depths_of(build("BertModel", num_hidden_layers=7)) == {"encoder": 7}
    assert depths_of(build("BartModel", encoder_layers=2, decoder_layers=5)) == {"encoder": 2, "decoder": 5}
    assert depths_of(build("BartModel", encoder_layers=1, decoder_layers=1)) == {"encoder": 1, "decoder": 1}


def test_lists_that_are_no_stacks_are_passed_over():
    class WithHeads(BertPreTrainedModel):
        """A model with one list of as many linear layers as it has blocks, and one of blocks that no field counts."""

        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config)
            self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in range(config.num_hidden_layers))
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 2), nn.ReLU()) for _ in range(9))
            self.post_init()

    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    assert [stack.path for stack in find_stacks(WithHeads(config)).values()] == ["bert.encoder.layer"]


def test_models_without_stacks_and_models_that_share_layers_are_refused_with_the_reason():
    albert = AlbertModel(
        AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    )
    with pytest.raises(
        UnsupportedModelError, match="AlbertModel cannot be cut by layers: ALBERT runs one shared layer"
    ):
        find_stacks(albert)
    with pytest.raises(UnsupportedModelError, match=r"Got a Linear, .*PreTrainedModel"):
        find_stacks(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="before it is wrapped"):
        find_stacks(nn.DataParallel(build("BertModel")))
    headless = build("BertModel")
    headless.encoder.layer = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="BertModel has no stack of layers"):
        find_stacks(headless)


def test_a_model_on_the_meta_device_has_the_same_stacks():
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=5))
    assert depths_of(model) == {"encoder": 5}
    assert len(layers_of(model)["encoder"]) == 5
