"""Layers that borrow from others, fields of single layers, and forwards that run their layers in a way of their own."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, GlmMoeDsaConfig, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from architectures.tiny import build_tiny
from conftest import assert_same_tensors
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, set_rates
from hf_layerdrop.architectures.families import cut_fields
from hf_layerdrop.architectures.layer_idx import numbered_parts
from hf_layerdrop.architectures.shared_kv import lenders, missing_lender
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError, UnsupportedModelError

SLIDING, FULL = "sliding_attention", "full_attention"
IDS = torch.tensor([[1, 5, 2, 9]])


def gemma(kinds, sharing=0, slices=0):
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=len(kinds),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=16,
        layer_types=kinds,
        num_kv_shared_layers=sharing,
        hidden_size_per_layer_input=slices,
        vocab_size_per_layer_input=32,
        initializer_range=0.3,
    )
    return Gemma4ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"indexer_types": ["full", "shared", "full", "shared"]}, {1: 0, 3: 2}),
        ({"indexer_types": ["full"] * 4}, {}),
        ({"kv_source_layers": [0, 0, 2, 0]}, {1: 0, 3: 0}),
        ({"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "b"]}, {2: 0, 3: 1}),
        ({"num_kv_shared_layers": 2}, {2: 1, 3: 1}),
        ({"num_kv_shared_layers": 0, "layer_types": ["a", "b", "a", "b"]}, {}),
    ],
)
def test_who_borrows_from_whom_is_read_from_the_config(config, expected):
    assert lenders(config, 4) == expected


def test_a_cut_keeps_borrower_and_lender_or_neither():
    config = {"indexer_types": ["full", "shared", "full", "shared"]}
    assert missing_lender(config, 4, (0, 1)) is None
    assert missing_lender(config, 4, (0, 2)) is None
    assert "layer 3 borrows from layer 2" in missing_lender(config, 4, (0, 3))
    assert cut_fields({"kv_source_layers": [0, 0, 2, 2]}, 4, (2, 3))["kv_source_layers"] == [0, 0]


def test_a_lender_is_never_dropped_and_never_cut_away_alone():
    model = gemma([SLIDING, FULL, SLIDING, FULL], sharing=2, slices=8)
    with pytest.raises(LayerDropConfigError, match=r"never_drop=\{'layers': \(0, 1\)\}"):
        inject_layerdrop(model, 0.5)
    inject_layerdrop(model, LayerDropConfig(1.0, never_drop={"layers": (0, 1)}))
    assert torch.isfinite(model.train().model(IDS).last_hidden_state).all()
    inject_layerdrop(model, 0.0)
    for rates in (0.5, {"layers": [0.5, 0, 0, 0]}):
        with pytest.raises(LayerDropConfigError, match=r"never_drop=\{'layers': \(0, 1\)\}"):
            set_rates(model, rates)
        assert layerdrop_state(model).rates == {"layers": [0.0] * 4}
    set_rates(model, [0, 0, 1, 1])
    with pytest.raises(UnsupportedModelError, match="layer 2 borrows from layer 0"):
        prune_layers(model, [1, 2, 3])


def test_a_model_whose_layers_borrow_nothing_takes_any_rate():
    config = GlmMoeDsaConfig(num_hidden_layers=4)
    assert lenders(vars(config), 4) == {}
    inject_layerdrop(gemma([SLIDING, FULL, SLIDING, FULL]), 0.5)


def test_what_single_layers_have_otherwise_goes_along_with_a_cut(tmp_path):
    model = gemma([FULL, SLIDING, SLIDING, FULL])
    widths = [layer.self_attn.head_dim for layer in model.model.layers]
    assert widths == [16, 8, 8, 16]
    prune_layers(model, [1, 3])
    assert model.config.to_dict()["per_layer_config"] == {"1": {"head_dim": 16}}
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    again = Gemma4ForCausalLM.from_pretrained(tmp_path)
    assert [layer.self_attn.head_dim for layer in again.model.layers] == [8, 16]
    assert_same_tensors(again.state_dict(), model.state_dict())
    torch.testing.assert_close(again(IDS).logits, expected)


def test_a_cut_whose_config_is_corrected_when_it_is_read_again_is_refused():
    model = gemma([FULL, SLIDING, SLIDING, FULL])
    before = dict(model.state_dict())
    with pytest.raises(UnsupportedModelError, match="plain transformers"):
        prune_layers(model, [0, 2])  # on reading, the last layer is made one of full attention
    assert_same_tensors(model.state_dict(), before)
    assert model.config.layer_types == [FULL, SLIDING, SLIDING, FULL]


def test_a_layer_with_two_places_in_the_cache_is_renumbered():
    class Attention(torch.nn.Module):
        def __init__(self, layer_idx):
            super().__init__()
            self.layer_idx = layer_idx

    layers = [torch.nn.ModuleList([Attention(2 * i), Attention(2 * i + 1)]) for i in range(3)]
    places = {(place.layer, place.at(place.layer)): place.at(0) for place in numbered_parts(layers)}
    assert places == {(0, 0): 0, (0, 1): 1, (1, 2): 0, (1, 3): 1, (2, 4): 0, (2, 5): 1}


@pytest.mark.parametrize("model_type", ["vjepa2", "xclip"])
def test_parts_beside_a_stack_have_a_depth_field_of_their_own(model_type):
    model = build_tiny(model_type).model
    from hf_layerdrop.architectures.stacks import find_stacks

    fields = [(stack.config_path, stack.depth_field) for stack in find_stacks(model).values()]
    assert len(set(fields)) == len(fields)


class PastTheirCall(LlamaModel):
    """A model that calls the forward of its layers directly, as fused code does."""

    def forward(self, input_ids):
        hidden = self.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1])[None]
        for layer in self.layers:
            layer: LlamaDecoderLayer
            hidden = layer.forward(hidden, position_embeddings=self.rotary_emb(hidden, positions))
        return hidden


def test_a_forward_that_runs_its_layers_past_their_call_is_an_error_and_not_a_layerdrop_without_effect():
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    )
    model = PastTheirCall(config).train()
    inject_layerdrop(model, 0.0)
    model(IDS)
    inject_layerdrop(model, LayerDropConfig((0.0, 1.0, 0.0, 1.0)))
    with pytest.raises(LayerDropStateError, match="none of them was called"):
        model(IDS)
    model.eval()(IDS)


class Made(TorchDispatchMode):
    """Note every operator that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dropped_head_makes_no_tensor_on_the_host_that_a_device_would_wait_for():
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaModel(config).train()
    whole = model(IDS).last_hidden_state
    with Made() as plain:
        model(IDS)
    inject_layerdrop(model, LayerDropConfig(0.9, structure="head"))
    with Made() as dropping:
        found = model(IDS).last_hidden_state
    assert not torch.equal(found, whole)
    from_host = [name for name in dropping.names if "lift" in name or "_to_copy" in name]
    assert len(from_host) == len([name for name in plain.names if "lift" in name or "_to_copy" in name])
