"""Sub-layers and heads dropped as one, alone and beside whole layers (3.2.1)."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import transformers
from torch import nn

from conftest import (
    CACHE,
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    gradients_of,
    layers_of,
    loss_of,
    output_of,
)
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    prune_heads,
    remove_layerdrop,
    set_rates,
    set_step,
    structure_sub_network,
)
from hf_layerdrop.architectures.structures import find_attentions, find_feed_forwards, find_heads
from hf_layerdrop.errors import KeepLayersError, LayerDropConfigError, LayerDropStateError, UnsupportedModelError
from hf_layerdrop.injection.rates import scale_rates
from ranks import SUPPORT, found_by_ranks
from structure_models import CONFIGS, CROSS, FFN, WIDTH, inputs, new

WORKER = SUPPORT / "structure_worker.py"
# Post-norm with the residual in a part of its own, post-norm in line, both stacks of one model, and pre-norm.
MODELS = ["BertForSequenceClassification", "RobertaForMaskedLM", "BartForConditionalGeneration", CROSS, *CONFIGS]
MODELS.remove("CLIPTextModel")  # built like ViTModel
STRUCTURES = ["attention", "ffn", "head"]


def named(layer: nn.Module, *ends: str) -> list[nn.Module]:
    """Return the parts of a layer whose names end in one of these, in the order of ``ends``."""
    return [part for end in ends for path, part in layer.named_modules() if f".{path}".endswith(f".{end}")]


def last_projections(layer: nn.Module, structure: str) -> list[nn.Module]:
    """Return the last projection of each branch of a layer, by the names of the families: an oracle."""
    attention = ("attention.output.dense", "self_attn.out_proj", "attn.c_proj", "o_proj")
    cross = ("crossattention.output.dense", "encoder_attn.out_proj")
    if structure != "ffn":
        return named(layer, *attention, *cross)
    return [part for path, part in layer.named_modules() if path in ("output.dense", "fc2", *FFN_PATHS)]


FFN_PATHS = ("mlp.c_proj", "mlp.down_proj", "mlp.fc2")


def silence(projection: nn.Module) -> None:
    """Let a projection contribute nothing."""
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()


def masks_of(model: nn.Module) -> dict[str, tuple[bool, ...]]:
    """Return the masks that the next training forward will use."""
    state = layerdrop_state(model)
    masks = {}
    for name, draw in state.draws.items():
        masks[name] = draw.mask = draw.draw()
    for draw in state.draws.values():
        draw.mask = None
    return masks


def drop_by_hand(model: nn.Module, masks: dict[str, tuple[bool, ...]]) -> None:
    """Zero the weights of what the masks drop."""
    for stack, layers in layers_of(model).items():
        for structure in STRUCTURES:
            mask = list(masks.get(f"{stack}/{structure}", ()))
            for layer in layers if mask else ():
                for projection in last_projections(layer, structure):
                    if structure == "head":
                        silence_heads(projection, heads_in(model), mask)
                    elif not mask.pop(0):
                        silence(projection)
            assert not mask


def heads_in(model: nn.Module) -> int:
    return getattr(model.config, "num_attention_heads", None) or model.config.encoder_attention_heads


def silence_heads(projection: nn.Module, count: int, mask: list[bool]) -> None:
    """Zero the slices of the dropped ones of the next ``count`` heads, which are taken from ``mask``."""
    is_conv = type(projection).__name__ == "Conv1D"
    weight = projection.weight if is_conv else projection.weight.T
    with torch.no_grad():
        for head in weight.view(weight.shape[0], -1).chunk(count, dim=0):
            if not mask.pop(0):
                head.zero_()


# --- A dropped part computes as if its weights were zero -------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_is_dropped_counts_as_if_its_last_weights_were_zero(name, structure):
    model, batch = new(name).train(), inputs(name)
    whole = output_of(model, batch)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=3, structure=structure))
    silenced = new(name).train()
    masks = masks_of(model)
    drop_by_hand(silenced, masks)
    assert all(any(mask) and not all(mask) for mask in masks.values())
    output = output_of(model, batch)
    assert torch.equal(output, output_of(silenced, batch))
    assert not torch.allclose(output, whole, atol=1e-3)
    assert not torch.equal(output_of(model, batch), output)  # another forward, another draw


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_is_dropped_gets_no_gradient_and_the_rest_the_same(name, structure):
    model, silenced, batch = new(name).train(), new(name).train(), inputs(name)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=3, structure=structure))
    drop_by_hand(silenced, masks_of(model))
    before = dict(new(name).named_parameters())
    zeroed = {key for key, weight in silenced.named_parameters() if not torch.equal(weight, before[key])}
    expected = gradients_of(silenced, loss_of(silenced, batch))
    dropped = 0
    for key, found in gradients_of(model, loss_of(model, batch)).items():
        if structure == "head" and key in zeroed:
            weight = dict(silenced.named_parameters())[key]
            assert not found[weight == 0].any()
            assert torch.allclose(found[weight != 0], expected[key][weight != 0], atol=1e-4)
            dropped += 1
        elif found is None:
            assert key in zeroed or expected[key] is None or not expected[key].any(), key
            dropped += expected[key] is not None
        else:
            assert key not in zeroed, key
            assert torch.allclose(found, expected[key], rtol=1e-4, atol=1e-4), key
    assert dropped


@pytest.mark.parametrize("structure", ["attention", "ffn"])
@pytest.mark.parametrize("name", MODELS)
def test_a_dropped_sub_layer_does_no_work_not_even_in_its_hooks(name, structure):
    model, batch = new(name).train(), inputs(name)
    inject_layerdrop(model, LayerDropConfig(1.0, structure=structure, never_drop=[1]))
    ran = []
    for stack, layers in layers_of(model).items():
        for index, layer in enumerate(layers):
            work = [part for part in layer.modules() if type(part).__name__ in ("Linear", "Conv1D")]
            others = {id(part) for part in work if within(layer, part, "attention") != (structure == "attention")}
            for part in work:
                place = (stack, index, id(part) in others)
                part.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    model(**batch)
    of_structure = {(stack, index) for stack, index, other in ran if not other}
    assert of_structure == {(stack, 1) for stack in layers_of(model)}
    assert {(stack, index) for stack, index, other in ran if other} == {
        (stack, index) for stack, layers in layers_of(model).items() for index in range(len(layers))
    }


def within(layer: nn.Module, part: nn.Module, word: str) -> bool:
    """Tell by names whether a part belongs to an attention of the layer."""
    path = next(path for path, module in layer.named_modules() if module is part)
    return "attn" in path or word in path


@pytest.mark.parametrize("name", MODELS)
def test_rate_0_and_eval_and_what_was_removed_are_bit_equal_to_the_untouched_model(name):
    model, untouched, batch = new(name), new(name), inputs(name)
    classes = [type(module) for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    config = model.config.to_dict()
    inject_layerdrop(model, LayerDropConfig(0.0, structure=("layer", *STRUCTURES)))
    assert torch.equal(output_of(model.train(), batch), output_of(untouched.train(), batch))
    assert_same_tensors(gradients_of(model, loss_of(model, batch)), gradients_of(untouched, loss_of(untouched, batch)))
    set_rates(model, 0.9)
    assert not torch.equal(output_of(model, batch), output_of(untouched, batch))
    assert torch.equal(output_of(model.eval(), batch), output_of(untouched.eval(), batch))
    assert_same_tensors(model.state_dict(), weights)
    assert [type(module).__name__ for module in model.modules()] == [cls.__name__ for cls in classes]
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not torch.equal(output_of(copied.train(), batch), output_of(untouched, batch))
        remove_layerdrop(copied)
        assert [type(module) for module in copied.modules()] == classes
        assert [set(module.__dict__) for module in copied.modules()] == attributes
        assert copied.config.to_dict() == config
        assert torch.equal(output_of(copied.train(), batch), output_of(untouched.train(), batch))


# --- Several structures at once ---------------------------------------------------------------------

OVERLAPS = [("head", "layer"), ("attention", "ffn"), ("head", "attention", "ffn"), ("layer", *STRUCTURES)]


@pytest.mark.parametrize("structure", OVERLAPS, ids="+".join)
@pytest.mark.parametrize("name", MODELS)
def test_structures_overlap_each_with_its_own_draw(name, structure):
    model, silenced, batch = new(name).train(), new(name), inputs(name)
    masks, seed = masks_that_all_drop(model, structure)
    stacks = layers_of(model)
    assert set(masks) == {stack if part == "layer" else f"{stack}/{part}" for stack in stacks for part in structure}
    drop_by_hand(silenced, masks)
    inject_layerdrop(silenced, LayerDropConfig({key: drawn_rates(masks.get(key)) for key in stacks}))
    output = output_of(model, batch)
    assert torch.equal(output, output_of(silenced.train(), batch))
    for single in structure:
        alone = new(name).train()
        inject_layerdrop(alone, LayerDropConfig(0.4, seed=seed, structure=single))
        assert not torch.allclose(output, output_of(alone, batch), atol=1e-3)


def masks_that_all_drop(model: nn.Module, structure: tuple[str, ...]) -> tuple[dict[str, tuple[bool, ...]], int]:
    """Inject with a seed at which each structure drops what the others do not; return the masks and the seed."""
    for seed in range(100):
        inject_layerdrop(model, LayerDropConfig(0.4, seed=seed, structure=structure))
        masks = masks_of(model)
        spread = [
            tuple(kept for kept in masks.get(name.partition("/")[0], [True] * DEPTH) for _ in range(len(mask) // DEPTH))
            for name, mask in masks.items()
            if "/" in name
        ]
        parts = [mask for name, mask in masks.items() if "/" in name]
        whole = [mask for name, mask in masks.items() if "/" not in name]
        apart = all(mask != layers for mask, layers in zip(parts, spread, strict=True))
        if apart and all(map(any, parts)) and not any(map(all, whole)):
            return masks, seed
    raise AssertionError


def drawn_rates(mask: tuple[bool, ...] | None) -> list[float]:
    return [float(not kept) for kept in mask] if mask else [0.0] * DEPTH


def test_groups_are_drawn_apart_at_the_rate_and_those_of_a_dropped_layer_are_dropped():
    model = new("BartForConditionalGeneration")
    inject_layerdrop(model, LayerDropConfig(0.25, seed=1, structure=("layer", "attention", "ffn", "head")))
    draws = layerdrop_state(model).draws
    assert {name: draw.depth for name, draw in draws.items()} == {
        "encoder": 4,
        "encoder/attention": 4,
        "encoder/ffn": 4,
        "encoder/head": 8,
        "decoder": 4,
        "decoder/attention": 8,  # self-attention and cross-attention, each on its own
        "decoder/ffn": 4,
        "decoder/head": 16,
    }
    kept = {name: [] for name in draws}
    for step in range(1500):
        set_step(model, step)
        for name, mask in masks_of(model).items():
            kept[name].append(mask)
    for name, masks in kept.items():
        expected = 0.75 if "/" not in name else 0.75**2
        for column in zip(*masks, strict=True):
            assert abs(sum(column) / len(column) - expected) < 0.05, name
        for layers, parts in zip(kept[name.split("/")[0]], masks, strict=True):
            per_layer = len(parts) // DEPTH
            assert not any(part and not layers[index // per_layer] for index, part in enumerate(parts))
    assert len({tuple(masks[:20]) for masks in kept.values() if len(masks[0]) == DEPTH}) == 5  # no two draw the same


# --- Recomputation, caches, steps -------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("structure", [*STRUCTURES, ("layer", "attention", "head")])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BartForConditionalGeneration", "LlamaModel"])
def test_gradient_checkpointing_reuses_the_masks(name, structure, use_reentrant):
    model, batch = new(name).train(), inputs(name)
    inject_layerdrop(model, LayerDropConfig(0.4, seed=4, structure=structure))
    expected = gradients_of(model, loss_of(model, batch), loss_of(model, inputs(name, seed=1)))
    set_step(model, 0)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    losses = [loss_of(model, batch), loss_of(model, inputs(name, seed=1))]  # two forwards before one backward
    assert_same_tensors(gradients_of(model, *losses), expected, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_checkpoint_around_the_model_or_around_a_layer_reuses_the_masks(structure, use_reentrant):
    model, batch = new("LlamaModel").train(), inputs("LlamaModel")
    inject_layerdrop(model, LayerDropConfig(0.4, seed=4, structure=structure))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()

    def loss(states):
        return model(inputs_embeds=states, use_cache=False).last_hidden_state.square().sum()

    expected = gradients_of(model, loss(embedded))
    set_step(model, 0)
    around = torch.utils.checkpoint.checkpoint(loss, embedded, use_reentrant=use_reentrant)
    assert_same_tensors(gradients_of(model, around), expected, atol=1e-4)
    set_step(model, 0)
    for layer in model.layers:
        layer.forward = checkpointed(layer.forward, use_reentrant)
    assert_same_tensors(gradients_of(model, loss(embedded)), expected, atol=1e-4)


def checkpointed(forward, use_reentrant):
    def again(hidden_states, **kwargs):
        run = lambda states: forward(states, **kwargs)  # noqa: E731
        return torch.utils.checkpoint.checkpoint(run, hidden_states, use_reentrant=use_reentrant)

    return again


@pytest.mark.parametrize("structure", STRUCTURES)
def test_generate_and_forwards_that_continue_a_cache_drop_nothing(structure):
    model, untouched = build("BartForConditionalGeneration"), build("BartForConditionalGeneration")
    batch = batch_for("BartForConditionalGeneration")
    inject_layerdrop(model, LayerDropConfig(1.0, structure=structure))
    settings = {"max_new_tokens": 6, "do_sample": False}
    expected = untouched.train().generate(**batch, **settings)
    assert torch.equal(model.train().generate(**batch, **settings), expected)
    states = {"encoder_outputs": untouched.get_encoder()(**batch), "attention_mask": batch["attention_mask"]}
    start, rest = expected[:, :1], expected[:, 1:3]
    caches = [each.eval()(decoder_input_ids=start, **states)[CACHE] for each in (model, untouched)]
    logits = [
        each.train()(decoder_input_ids=rest, **{CACHE: cache}, **states).logits
        for each, cache in zip((model, untouched), caches, strict=True)
    ]
    assert torch.equal(*logits)


@pytest.mark.parametrize("structure", ["attention", ("layer", "attention")])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BartForConditionalGeneration", CROSS, "LlamaModel"])
def test_attentions_of_dropped_ones_are_none_and_hidden_states_are_all_there(name, structure):
    model, batch = new(name).train(), inputs(name)
    asked = {"output_attentions": True, "output_hidden_states": True}
    expected = model(**batch, **asked)
    masks, _ = masks_that_all_drop(model, (structure,) if isinstance(structure, str) else structure)
    found = model(**batch, **asked)
    for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        if expected.get(key) is not None:
            assert len(found[key]) == len(expected[key]) == DEPTH + 1
    for stack in layers_of(model):
        mask = masks[f"{stack}/attention"]
        crossed = len(mask) // DEPTH
        for key, first in (("attentions", 0), ("cross_attentions", 1)):
            key = key if key in found else f"{stack}_{key}"
            if first < crossed:
                assert [weights is not None for weights in found[key]] == list(mask[first::crossed])


def test_rates_schedules_never_drop_and_logs_hold_for_structures():
    model = new("BertForSequenceClassification").train()
    inject_layerdrop(model, LayerDropConfig(0.5, structure=("ffn", "head"), never_drop=[0, -1]))
    state = layerdrop_state(model)
    assert state.rates == {"encoder": [0.0, 0.5, 0.5, 0.0]}
    assert model.config.hf_layerdrop["rates"] == state.rates
    assert model.config.hf_layerdrop["trained_with"]["structure"] == ["ffn", "head"]
    scale_rates(model, 0.5)
    assert [draw.rates for draw in state.draws.values()] == [(0.0, 0.25, 0.25, 0.0)] * 2
    set_rates(model, 1.0)
    assert masks_of(model) == {
        "encoder/ffn": (True, False, False, True),
        "encoder/head": (True, True, *[False] * 4, True, True),
    }
    model(**inputs("BertForSequenceClassification"))
    log = {"layerdrop_rate": 0.5, "layerdrop_ffns_used": 2.0, "layerdrop_heads_used": 4.0}
    assert state.take_log() == log
    assert {name: draw.mean_kept for name, draw in state.draws.items()} == {"encoder/ffn": 2, "encoder/head": 4}


def test_a_saved_state_continues_the_draws_and_another_structure_is_refused():
    settings = LayerDropConfig(0.5, seed=8, structure=("layer", "head"))
    model, other, batch = new("LlamaModel").train(), new("LlamaModel").train(), inputs("LlamaModel")
    inject_layerdrop(model, settings)
    inject_layerdrop(other, settings)
    model(**batch)
    layerdrop_state(other).load_state_dict(layerdrop_state(model).state_dict())
    assert torch.equal(output_of(model, batch), output_of(other, batch))
    inject_layerdrop(other, LayerDropConfig(0.5, structure="ffn"))
    with pytest.raises(LayerDropConfigError, match=r"layers/head, but this model draws for layers/ffn"):
        layerdrop_state(other).load_state_dict(layerdrop_state(model).state_dict())


def test_a_checkpoint_loads_plain_and_goes_on_with_its_structure(tmp_path):
    from hf_layerdrop import LayerDropBertForSequenceClassification as Injected

    model, batch = build("BertForSequenceClassification"), batch_for("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig(0.5, seed=6, structure=("head", "layer")))
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(output_of(plain, batch), output_of(model, batch))
    again = Injected.from_pretrained(tmp_path, attn_implementation="eager")
    assert layerdrop_state(again).config.structures == ("layer", "head")
    assert torch.equal(output_of(again.train(), batch), output_of(model.train(), batch))
    assert not torch.equal(output_of(again, batch), output_of(plain, batch))


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(WORKER)


@pytest.mark.parametrize("structure", ["attention+ffn", "head+attention+layer"])
@pytest.mark.parametrize("case", ["False-none", "False-reentrant", "True-none", "True-plain"])
def test_ddp_ends_where_one_process_ends(ranks, structure, case):
    for found in ranks[f"{structure}-{case}"]:
        assert found["distance"] < 1e-5  # with momentum and decay: a zero gradient in place of None would show
        assert found["spread"] == 0
        assert found["dropped"] > 0  # attentions that the optimizer saw without a gradient


# --- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "structure", "words"),
    [
        (
            transformers.PhiConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=9),
            "ffn",
            ["PhiDecoderLayer", "not a chain", "'head'"],  # its attention and its feed-forward share a norm
        ),
        (
            transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=9),
            "attention",
            ["BloomBlock", "not a chain"],  # adds the residual inside
        ),
        (
            transformers.NystromformerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=9),
            "attention",
            ["NystromformerSelfAttention", "several values"],
        ),
        (
            transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=9, state_size=4),
            "head",
            ["MambaBlock", "no heads", "structure='layer'"],
        ),
    ],
)
def test_layers_that_are_no_chain_of_sub_layers_are_refused_by_name_and_unchanged(config, structure, words):
    model = transformers.AutoModel.from_config(config)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError) as refused:
        inject_layerdrop(model, LayerDropConfig(0.5, structure=structure))
    assert all(word in str(refused.value) for word in words)
    assert [type(module) for module in model.modules()] == classes


def test_parts_are_found_in_blocks_that_keep_them_in_a_list_and_attentions_that_hand_on_more_are_refused():
    settings = {"d_model": WIDTH, "num_layers": 1, "num_heads": 4, "d_kv": 3, "d_ff": FFN, "vocab_size": 9}
    block = transformers.T5Model(transformers.T5Config(**settings)).decoder.block[0]
    (feed_forward,) = find_feed_forwards(block)
    assert [part for part, _ in feed_forward.parts] == [block.layer[2].DenseReluDense]
    assert list(feed_forward.weights) == [block.layer[2].layer_norm, block.layer[2].DenseReluDense]
    assert [heads.count for heads in find_heads(block)] == [4, 4]
    with pytest.raises(UnsupportedModelError, match="T5Attention returns 3 values"):
        find_attentions(block)


# --- Sub-networks in place --------------------------------------------------------------------------


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_structure_sub_network_computes_without_what_is_left_out(name, injected):
    model, silenced, batch = new(name), new(name), inputs(name)
    expected = output_of(model, batch)
    if injected:
        inject_layerdrop(model, LayerDropConfig(1.0, structure=STRUCTURES))
    stack = list(layers_of(model))[-1]
    keep = {f"{stack}/attention": [0, 3], f"{stack}/ffn": "1:", f"{stack}/head": {3: [0]}}
    model.train()  # what would be drawn is not
    with structure_sub_network(model, keep) as masks:
        drop_by_hand(silenced, masks)
        output = output_of(model, batch)
        assert torch.equal(output, output_of(silenced.train(), batch))
        assert torch.equal(output_of(model, batch), output)
    assert not torch.allclose(output, expected, atol=1e-3)
    assert torch.equal(output_of(model.eval(), batch), expected)
    assert ("_layerdrop" in vars(model)) == injected


def test_a_structure_sub_network_that_cannot_be_is_refused():
    model = new("BartForConditionalGeneration")
    for keep, words in (
        ({"ffn": "::2"}, "'ffn'; the model has encoder/attention, encoder/ffn"),
        ({"encoder/layer": "::2"}, "'encoder/layer'"),
        ({"encoder/ffn": [4]}, "4"),
        ({"encoder/head": [0]}, "heads by layer"),
        ({"encoder/head": {4: [0]}}, "4 layers"),
        ({"decoder/head": {0: [4]}}, r"head 4 of layer 0, which has 4 heads \(0 to 3\)"),
    ):
        with pytest.raises(KeepLayersError, match=words), structure_sub_network(model, keep):
            pass
        assert "_layerdrop" not in vars(model)
    inject_layerdrop(model, LayerDropConfig(0.5, structure="head"))
    with pytest.raises(LayerDropStateError, match="without 'ffn'"), structure_sub_network(model, {"encoder/ffn": 2}):
        pass


def test_a_config_with_structures_is_json_and_the_command_line_writes_the_same():
    from hf_layerdrop.cli.train import _layerdrop

    config = LayerDropConfig(0.2, structure=["head", "layer"])
    assert config.structures == ("layer", "head")
    assert LayerDropConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LayerDropConfig(0.2, structure=("ffn",)) == LayerDropConfig(0.2, structure="ffn")
    assert _layerdrop("0.2", None, None, "head, layer") == config
    with pytest.raises(LayerDropConfigError, match="--structure"):
        _layerdrop(None, None, None, "head")


# --- Heads pruned for good --------------------------------------------------------------------------

KEPT_HEADS = {
    "LlamaModel": {0: [0, 1], 1: [2, 3], 2: [0, 2], 3: [1, 3]},
    "ViTModel": {0: [3, 1], 1: [0, 1], 2: [0, 2], 3: [1, 3]},
}


@pytest.mark.parametrize("name", KEPT_HEADS)
def test_pruned_heads_are_gone_and_plain_transformers_computes_the_same(name, tmp_path):
    kept = dict(KEPT_HEADS[name])
    if name == "LlamaModel":
        kept |= {2: [0, 1], 3: [2, 3]}  # one of two groups that share keys and values
    model, batch = new(name), inputs(name)
    whole = output_of(model, batch)
    with structure_sub_network(model, {"head": kept}):
        expected = output_of(model, batch)
    size = sum(weight.numel() for weight in model.parameters())
    inject_layerdrop(model, LayerDropConfig(0.5, structure=("head", "layer")))
    prune_heads(model, kept)
    assert torch.allclose(output_of(model, batch), expected, atol=1e-5)
    assert not torch.allclose(whole, expected, atol=1e-2)
    assert sum(weight.numel() for weight in model.parameters()) < size
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(output_of(plain, batch), output_of(model, batch))
    assert plain.config.num_attention_heads == 2
    assert plain.config.hf_layerdrop["keep_heads"] == {"layers": [sorted(kept[layer]) for layer in range(DEPTH)]}


def test_groups_may_shrink_where_all_stay():
    model, batch = new("LlamaModel"), inputs("LlamaModel")
    kept = {layer: [1, 2] for layer in range(DEPTH)}  # one head of each group
    with structure_sub_network(model, {"head": kept}):
        expected = output_of(model, batch)
    prune_heads(model, kept)
    assert torch.allclose(output_of(model, batch), expected, atol=1e-5)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)


@pytest.mark.parametrize(
    ("name", "kept", "words"),
    [
        ("LlamaModel", {0: [0, 1]}, "2 heads in layer 0 and 4 in layer 1; a plain config has one number"),
        ("LlamaModel", {layer: [0, 1, 2] for layer in range(DEPTH)}, "groups that share"),
        ("LlamaModel", {0: [0, 1], **{layer: [1, 2] for layer in range(1, DEPTH)}}, "1 groups of heads"),
        ("LlamaModel", {0: [4]}, "4 heads"),
        ("LlamaModel", {0: []}, "4 heads"),
        ("LlamaModel", {0: [1, 1]}, "each once"),
        ("BertModel", {layer: [1] for layer in range(DEPTH)}, "query, key, value"),
        ("GPT2Model", {layer: [1] for layer in range(DEPTH)}, "no projections of their own"),
        ("CLIPTextModel", {layer: [1] for layer in range(DEPTH)}, "No CLIPTextConfig describes a CLIPTextModel"),
        ("BartForConditionalGeneration", {}, "one stack"),
        ("BartForCausalLM", {layer: [1] for layer in range(DEPTH)}, "without cross-attention"),
    ],
)
def test_heads_that_no_config_can_describe_are_refused_and_nothing_is_changed(name, kept, words):
    model = new(name)
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    config = model.config.to_dict()
    with pytest.raises((KeepLayersError, UnsupportedModelError), match=words):
        prune_heads(model, kept)
    assert_same_tensors(model.state_dict(), weights)
    assert model.config.to_dict() == config
