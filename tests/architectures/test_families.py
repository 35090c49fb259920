"""About forty families, from text to speech to vision, keep every promise of `tests/architectures/checks.py`."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    ModernBertConfig,
    ModernBertModel,
    Olmo3Config,
    Olmo3Model,
)

from architectures.checks import CHECKS, run_checks
from architectures.tiny import Tiny, build_tiny
from conftest import assert_same_tensors
from hf_layerdrop import LayerDropConfig, inject_layerdrop, prune_layers, remove_layerdrop, save_pruned
from hf_layerdrop.architectures.families import BIAS_IN_FIRST_BLOCK, cut_fields
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.checkpoints.headers import read_checkpoint
from hf_layerdrop.checkpoints.stored_model import find_stored_model
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.injection.passthrough import handed_on
from hf_layerdrop.pruning.loading import load_plain
from hf_layerdrop.pruning.prune import sub_network

SAMPLE = [
    # text encoders
    *("bert", "roberta", "distilbert", "electra", "deberta-v2", "mpnet", "xlm-roberta"),
    # decoders
    *("gpt2", "gpt_neo", "gpt_neox", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"),
    *("phi3", "smollm3", "olmo2", "mixtral", "qwen3_moe", "gpt_oss"),
    # encoder-decoders
    *("bart", "t5", "longt5", "marian", "encoder-decoder"),
    # speech
    *("whisper", "wav2vec2", "wavlm"),
    # vision, and vision with language
    *("vit", "dinov2", "clip", "blip", "llava"),
    # blocks of several kinds
    *("mamba", "bamba", "granitemoehybrid", "lfm2"),
]  # fmt: skip
STACKS = {
    "llava": {"vision": "vision_tower.encoder.layers", "text": "language_model.layers"},
    "clip": {"text": "text_model.encoder.layers", "vision": "vision_model.encoder.layers"},
    "encoder-decoder": {"encoder": "encoder.encoder.layer", "decoder": "decoder.bert.encoder.layer"},
    "whisper": {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
    "t5": {"encoder": "encoder.block", "decoder": "decoder.block"},
    "gpt2": {"layers": "transformer.h"},
}


@pytest.fixture(scope="module")
def tiny():
    built: dict[str, Tiny] = {}

    def of(model_type):
        if model_type not in built:
            built[model_type] = build_tiny(model_type)
        return Tiny(built[model_type].copy(), built[model_type].batch, built[model_type].ran, built[model_type].calls)

    return of


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_family_keeps_every_promise(model_type, tiny):
    done = run_checks(tiny(model_type))
    assert set(CHECKS) - set(done) <= {"generation", "hidden states"}


@pytest.mark.parametrize("model_type", STACKS)
def test_stacks_are_named_after_the_parts_of_a_model_also_in_a_checkpoint(model_type, tiny, tmp_path):
    model = tiny(model_type).model
    assert {name: stack.path for name, stack in find_stacks(model).items()} == STACKS[model_type]
    model.save_pretrained(tmp_path)
    stored = find_stored_model(read_checkpoint(tmp_path))
    assert {stack.name: stack.path for stack in stored.stacks} == STACKS[model_type]
    assert stored.depths == depths_of(model)


def test_a_part_of_a_composite_model_is_cut_by_its_name(tiny, tmp_path):
    model = tiny("llava").model
    model.save_pretrained(tmp_path)
    cut = load_plain(type(model), tmp_path, keep_layers="text=1;vision=0,2,3")
    prune_layers(model, {"text": 1, "vision": [0, 2, 3]})
    assert_same_tensors(cut.state_dict(), model.state_dict())
    assert cut.config.text_config.num_hidden_layers == 1
    assert cut.config.vision_config.num_hidden_layers == 3


# --- What the first block owns for all ------------------------------------------------------------


def bias_names(model, stack):
    names = BIAS_IN_FIRST_BLOCK[stack.model_type].weights
    return [name for name in model.state_dict() if name.startswith(stack.path) and set(names) & set(name.split("."))]


@pytest.mark.parametrize("model_type", ["t5", "longt5", "wavlm"])
def test_the_bias_of_the_first_block_is_trained_when_it_is_dropped_and_nothing_else_of_it(model_type, tiny):
    model, batch = tiny(model_type).model.train(), tiny(model_type).batch
    names = list(model.state_dict())
    plain = {name: list(part.__dict__) for name, part in model.named_modules()}
    inject_layerdrop(model, LayerDropConfig(dict.fromkeys(depths_of(model), (1.0, 0.0, 0.0, 0.0))))
    assert list(model.state_dict()) == names
    model(**batch)[0].square().sum().backward()
    for stack in find_stacks(model).values():
        owned = bias_names(model, stack)
        assert owned
        for name, weight in model.named_parameters():
            if name.startswith(f"{stack.path}.0."):
                assert (weight.grad is not None) == (name in owned), name
                assert name not in owned or weight.grad.abs().sum() > 0
    remove_layerdrop(model)
    assert {name: list(part.__dict__) for name, part in model.named_modules()} == plain


@pytest.mark.parametrize("model_type", ["t5", "wavlm"])
def test_a_cut_moves_the_bias_to_the_first_block_that_is_kept(model_type, tiny, tmp_path):
    model = tiny(model_type).model
    model.save_pretrained(tmp_path)
    before = dict(model.state_dict())
    names = [name for stack in find_stacks(model).values() for name in bias_names(model, stack)]
    kept = {name: [2, 3] for name in depths_of(model)}
    with sub_network(model, kept):
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in names)
    assert_same_tensors(model.state_dict(), before)
    loaded = load_plain(type(model), tmp_path, keep_layers=kept)
    prune_layers(model, kept)
    for found in (model, loaded):
        assert all(torch.equal(found.state_dict()[name], before[name]) for name in names)
        assert_same_tensors(found.state_dict(), model.state_dict())


# --- Config fields that go along ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["b", "d"]),
        ("layers_block_type", ("a", "b", "c", "d"), ("b", "d")),
        ("no_rope_layers", [1, 0, 1, 0], [0, 0]),
        ("mlp_only_layers", [0, 1, 3], [0, 1]),
        ("moe_layers", [2], []),
        ("first_k_dense_replace", 2, 1),
        ("first_k_dense_replace", 0, 0),
        ("max_window_layers", 28, 28),
        ("num_kv_shared_layers", 1, 1),
        ("num_kv_shared_layers", 3, 2),
        ("stage_names", ["stem", "stage1", "stage2", "stage3", "stage4"], ["stem", "stage1", "stage2"]),
    ],
)
def test_fields_that_speak_of_layers_are_cut_along(field, value, expected):
    assert cut_fields({field: value}, 4, (1, 3))[field] == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conv_dim", [5, 5, 5, 5]),
        ("architectures", ["a", "b", "c", "d"]),
        ("layer_types", ["a", "b"]),
        ("depths", [1, 2, 3, 4]),
    ],
)
def test_other_lists_stay(field, value):
    assert field not in cut_fields({field: value}, 4, (1, 3))


def test_a_cut_of_a_mixed_stack_writes_the_kinds_that_are_left(tiny):
    model = tiny("bamba").model
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    prune_layers(model, [1, 3])
    assert model.config.layer_types == [kinds[1], kinds[3]]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("albert", "one shared layer"), ("swin", "stages of different width"), ("bridgetower", "pairwise")],
)
def test_what_has_no_single_layers_is_refused(model_type, reason, tiny):
    with pytest.raises(UnsupportedModelError, match=reason):
        inject_layerdrop(tiny(model_type).model, 0.2)


@pytest.mark.parametrize("model_type", ["diffllama", "esmc"])
def test_a_cut_that_plain_transformers_would_build_otherwise_is_refused_before_anything_is_written(
    model_type, tiny, tmp_path
):
    model = tiny(model_type).model
    model.save_pretrained(tmp_path / "whole")
    before = json.dumps(model.config.to_dict(), default=str)
    for cut in (
        lambda: prune_layers(model, [0, 2]),
        lambda: load_plain(type(model), tmp_path / "whole", keep_layers=[0, 2]),
        lambda: save_pruned(model, tmp_path / "cut", keep_layers=[0, 2], tokenizer=False),
    ):
        with pytest.raises(UnsupportedModelError, match="plain transformers would build layer") as error:
            cut()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "cut").exists()
    assert json.dumps(model.config.to_dict(), default=str) == before
    assert len(find_stacks(model)["layers"].layers(model)) == 4


def test_an_encoder_decoder_of_two_models_of_one_type_is_cut_in_either(tmp_path):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    config = BertConfig(num_hidden_layers=4, **sizes)
    decoder = BertConfig(num_hidden_layers=4, is_decoder=True, add_cross_attention=True, **sizes)
    model = EncoderDecoderModel(encoder=BertModel(config), decoder=BertLMHeadModel(decoder)).eval()
    prune_layers(model, {"encoder": "all", "decoder": [0, 3]})
    assert (model.config.encoder.num_hidden_layers, model.config.decoder.num_hidden_layers) == (4, 2)
    model.save_pretrained(tmp_path)
    batch = {"input_ids": torch.arange(1, 7)[None], "decoder_input_ids": torch.arange(1, 5)[None]}
    with torch.no_grad():
        assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path).eval()(**batch).logits, model(**batch).logits)


KINDS_OF_ATTENTION = {  # each has frequencies of its own, which are not saved, and not made where no layer is of it
    "modernbert": (ModernBertModel, ModernBertConfig, 22, {"pad_token_id": 0}),
    "gemma3": (Gemma3TextModel, Gemma3TextConfig, 6, {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}),
    "olmo3": (Olmo3Model, Olmo3Config, 8, {"num_key_value_heads": 1, "pad_token_id": 0, "sliding_window": 4}),
}


@pytest.mark.parametrize(
    ("name", "kept"),
    [("modernbert", "::3"), ("gemma3", "first:5"), ("gemma3", "5::6"), ("gemma3", "first:4"), ("olmo3", "3::4")],
)
def test_a_cut_may_lose_one_kind_of_attention(name, kept, tmp_path):
    model_class, config_class, depth, settings = KINDS_OF_ATTENTION[name]
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    torch.manual_seed(0)
    model = model_class(config_class(num_hidden_layers=depth, **sizes, **settings)).eval()
    kinds, batch = set(model.config.layer_types), {"input_ids": torch.arange(1, 13)[None]}
    with sub_network(model, kept), torch.no_grad():
        inside = model(**batch).last_hidden_state
    save_pruned(model, tmp_path / "saved", keep_layers=kept, tokenizer=False)
    prune_layers(model, kept)
    assert len(set(model.config.layer_types)) < len(kinds)
    with torch.no_grad():
        cut = model(**batch).last_hidden_state
        again = model_class.from_pretrained(tmp_path / "saved").eval()(**batch).last_hidden_state
    assert torch.equal(inside, cut)
    assert torch.equal(again, cut)


# --- What a dropped layer hands on ----------------------------------------------------------------


class ReturnsTensor(torch.nn.Module):
    def forward(self, hidden_states, mask=None):
        return hidden_states


class ReturnsPair(torch.nn.Module):
    def forward(self, hidden_states, memory=None, mask=None):
        weights = mask
        return hidden_states, memory, weights


class ReturnsVariable(torch.nn.Module):
    def forward(self, x, output_attentions=False):
        outputs = (x,)
        if output_attentions:
            outputs += (x,)
        return outputs


def test_a_dropped_layer_hands_on_its_input_in_the_form_that_it_returns():
    x, memory = torch.ones(2), torch.zeros(2)
    assert handed_on(ReturnsTensor(), (x,), {}) is x
    assert handed_on(ReturnsTensor(), (), {"hidden_states": x}) is x
    assert handed_on(ReturnsPair(), (x,), {"memory": memory}) == (x, memory, None)
    found = handed_on(ReturnsVariable(), (), {"x": x})
    assert found[0] is x
    assert set(found[1:]) == {None}
    assert handed_on(ReturnsTensor(), (x,), {"mask": memory}, ["mask"]) == (x, memory)
