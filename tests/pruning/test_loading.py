"""Load some layers of a checkpoint: promises 9 to 11 and 13 of the design, tensor by tensor."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertModel, AutoConfig, BertModel

import hf_layerdrop
from conftest import assert_same_tensors, batch_for, build, cut_by_hand, keep_all_stacks, layers_of, output_of
from hf_layerdrop import load_checkpoint, prune_layers
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.checkpoints.weight_names import WeightNames, keep_weights
from hf_layerdrop.errors import CheckpointError, KeepLayersError, UnsupportedModelError
from hf_layerdrop.pruning.loading import load_plain

KEPT = [1, 3]
OTHER = [0, 2]
# A head of another kind over the same weights, for each base model and back.
CROSSED = [
    ("BertModel", "BertForSequenceClassification", "bert."),
    ("RobertaModel", "RobertaForTokenClassification", "roberta."),
    ("BartModel", "BartForConditionalGeneration", "model."),
    ("BartModel", "BartForSequenceClassification", "model."),
]


def named(head):
    return getattr(hf_layerdrop, f"LayerDrop{head}")


def plain(head):
    return getattr(transformers, head)


def saved(model, folder, **settings):
    model.save_pretrained(folder, **settings)
    return folder


def loaded(head, folder, kept=KEPT, **settings):
    stacks = layers_of(build(head))
    return named(head).from_pretrained(folder, keep_layers=dict.fromkeys(stacks, kept), **settings)


# --- Promise 9: the same tensors as loading everything and cutting --------------------------------


def test_keep_layers_at_load_gives_the_tensors_of_load_and_cut(any_head, tmp_path):
    source, batch = build(any_head), batch_for(any_head)
    saved(source, tmp_path)
    model = loaded(any_head, tmp_path, attn_implementation="eager")
    cut = cut_by_hand(source, keep_all_stacks(source, KEPT))
    whole = named(any_head).from_pretrained(tmp_path, attn_implementation="eager")
    assert_same_tensors(whole.state_dict(), source.state_dict())
    prune_layers(whole, keep_all_stacks(source, KEPT))
    assert_same_tensors(model.state_dict(), cut.state_dict())
    assert_same_tensors(model.state_dict(), whole.state_dict())
    # Weights in a mapped file are aligned otherwise than in memory of torch's own, which may change the last bit.
    output = output_of(copy.deepcopy(model), batch)
    assert torch.equal(output, output_of(cut, batch))
    assert not torch.allclose(output, output_of(source, batch), atol=1e-3)
    assert not torch.allclose(
        output, output_of(loaded(any_head, tmp_path, OTHER, attn_implementation="eager"), batch), atol=1e-3
    )
    assert {name: len(layers) for name, layers in layers_of(model).items()} == dict.fromkeys(layers_of(source), 2)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_stack_that_is_not_named_is_loaded_whole(stack, tmp_path):
    source = build("BartForConditionalGeneration")
    saved(source, tmp_path)
    model = named("BartForConditionalGeneration").from_pretrained(tmp_path, keep_layers={stack: KEPT})
    cut = cut_by_hand(source, {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], stack: KEPT})
    assert_same_tensors(model.state_dict(), cut.state_dict())


@pytest.mark.parametrize(("base", "head", "prefix"), CROSSED)
def test_a_base_models_checkpoint_loads_into_a_head_and_back(base, head, prefix, tmp_path):
    source = build(base)
    model = loaded(head, saved(source, tmp_path / "base"))
    cut = cut_by_hand(source, keep_all_stacks(source, KEPT))
    found = {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}
    expected = {name: value for name, value in cut.state_dict().items() if name in found}
    assert_same_tensors(found, expected)
    assert len(found) >= len(cut.state_dict()) - 2  # a pooler, which some heads leave out
    source = build(head)
    model = loaded(base, saved(source, tmp_path / "head"))
    cut = cut_by_hand(source, keep_all_stacks(source, KEPT))
    expected = {name.removeprefix(prefix): value for name, value in cut.state_dict().items()}
    found = {name: value for name, value in model.state_dict().items() if name in expected}
    assert_same_tensors(found, {name: expected[name] for name in found})
    assert len(found) >= len(model.state_dict()) - 2


def test_the_decoder_alone_is_loaded_from_the_whole_model(tmp_path):
    source = build("BartForConditionalGeneration")
    saved(source, tmp_path)
    model = named("BartForCausalLM").from_pretrained(tmp_path, keep_layers={"decoder": KEPT})
    cut = cut_by_hand(source, {"decoder": KEPT}).state_dict()
    found = {name: value for name, value in model.state_dict().items() if ".layers." in name}
    assert_same_tensors(found, {name: value for name, value in cut.items() if "decoder.layers." in name})


def test_sharded_checkpoints(head, tmp_path):
    source = build(head)
    saved(source, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = loaded(head, tmp_path)
    assert_same_tensors(model.state_dict(), cut_by_hand(source, keep_all_stacks(source, KEPT)).state_dict())


def test_more_than_ten_layers_are_numbered_by_value_and_not_by_text(tmp_path):
    source = build("BertModel", num_hidden_layers=13)
    kept = [1, 2, 10, 12]
    model = loaded("BertModel", saved(source, tmp_path), kept)
    assert_same_tensors(model.state_dict(), cut_by_hand(source, {"encoder": kept}).state_dict())


# --- Every other argument passes through ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float64])
def test_dtype(head, dtype, tmp_path):
    model = loaded(head, saved(build(head), tmp_path), dtype=dtype)
    expected = torch.bfloat16 if dtype == "bfloat16" else dtype
    assert model.dtype == expected
    cut = cut_by_hand(plain(head).from_pretrained(tmp_path, dtype=dtype), keep_all_stacks(model, KEPT))
    assert_same_tensors(model.state_dict(), cut.to(expected).state_dict())


def test_device_map_subfolder_attention_and_labels(tmp_path):
    source = build("BertForSequenceClassification")
    saved(source, tmp_path / "inner")
    settings = {"device_map": "cpu", "subfolder": "inner", "attn_implementation": "sdpa"}
    model = loaded("BertForSequenceClassification", tmp_path, **settings)
    assert_same_tensors(model.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())
    assert model.config._attn_implementation == "sdpa"
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    eager = loaded("BertForSequenceClassification", tmp_path, **{**settings, "attn_implementation": "eager"})
    assert eager.config._attn_implementation == "eager"
    three = loaded("BertForSequenceClassification", tmp_path, num_labels=3, ignore_mismatched_sizes=True, **settings)
    assert three.classifier.weight.shape == (3, 16)
    body = {name: value for name, value in three.state_dict().items() if "classifier" not in name}
    assert_same_tensors(body, {name: model.state_dict()[name] for name in body})


def test_labels_of_a_new_head(tmp_path):
    saved(build("RobertaModel"), tmp_path)
    model = loaded(
        "RobertaForSequenceClassification", tmp_path, num_labels=5, problem_type="single_label_classification"
    )
    assert model.config.num_labels == 5
    assert model.config.problem_type == "single_label_classification"
    assert output_of(model, batch_for("RobertaModel")).shape == (3, 5)


def test_a_config_that_is_handed_in_is_used(tmp_path):
    source = build("BertForSequenceClassification")
    saved(source, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, hidden_act="relu")
    model = loaded("BertForSequenceClassification", tmp_path, config=config, attn_implementation="eager")
    assert model.config.hidden_act == "relu"
    assert_same_tensors(model.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())
    assert not torch.allclose(
        output_of(model, batch_for("BertModel")),
        output_of(cut_by_hand(source, {"encoder": KEPT}), batch_for("BertModel")),
    )


def test_loading_info_is_that_of_a_checkpoint_of_these_layers_alone(head, tmp_path):
    model, info = loaded(head, saved(build(head), tmp_path), output_loading_info=True)
    assert type(model) is named(head)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    base = {"BertForSequenceClassification": "BertModel", "RobertaForMaskedLM": "RobertaModel"}.get(head, "BartModel")
    if head != "BartForCausalLM":
        _, info = loaded(head, saved(build(base), tmp_path / "base"), output_loading_info=True)
        _, whole = plain(head).from_pretrained(tmp_path / "base", output_loading_info=True)
        assert set(info["missing_keys"]) == set(whole["missing_keys"])


def legacy(folder):
    """Rewrite a checkpoint with the names that TensorFlow's BERT gave to LayerNorm's weights."""
    weights = load_file(folder / "model.safetensors")
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, value in weights.items():
        old = next((name.replace(new, old) for new, old in names.items() if name.endswith(new)), name)
        renamed[old] = value
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification", "RobertaForMaskedLM"])
def test_legacy_names_load_as_through_transformers(name, tmp_path):
    source = build(name)
    legacy(saved(source, tmp_path))
    untouched = plain(name).from_pretrained(tmp_path)
    assert_same_tensors(untouched.state_dict(), source.state_dict())
    assert_same_tensors(named(name).from_pretrained(tmp_path).state_dict(), source.state_dict())
    cut = cut_by_hand(source, {"encoder": KEPT})
    assert_same_tensors(loaded(name, tmp_path).state_dict(), cut.state_dict())


@pytest.mark.parametrize("keep_layers", [None, KEPT])
def test_a_pickle_checkpoint_is_read_only_when_it_is_asked_for(keep_layers, tmp_path):
    source = build("BertForMaskedLM")
    saved(source, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="use_safetensors=False") as error:
        named("BertForMaskedLM").from_pretrained(tmp_path, keep_layers=keep_layers)
    assert "\n" not in str(error.value)
    model = named("BertForMaskedLM").from_pretrained(tmp_path, keep_layers=keep_layers, use_safetensors=False)
    cut = cut_by_hand(source, {"encoder": keep_layers or [0, 1, 2, 3]})
    assert_same_tensors(model.state_dict(), cut.state_dict())


def test_weights_can_be_handed_in_as_a_state_dict(tmp_path):
    source = build("BertForMaskedLM")
    model = named("BertForMaskedLM").from_pretrained(
        None, config=source.config, state_dict=source.state_dict(), keep_layers=KEPT
    )
    assert_same_tensors(model.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "RobertaForMaskedLM", "BartForConditionalGeneration", "BartForCausalLM"]
)
def test_tied_weights_stay_tied(name, tmp_path):
    model = loaded(name, saved(build(name), tmp_path / "source"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    again = plain(name).from_pretrained(saved(model, tmp_path / "cut"))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert_same_tensors(again.state_dict(), model.state_dict())


# --- Provenance -----------------------------------------------------------------------------------


def test_provenance_of_a_cut_at_load_and_of_a_cut_of_a_cut(tmp_path):
    name = "BartForConditionalGeneration"
    source = build(name, encoder_layerdrop=0.3, decoder_layerdrop=0.3)
    hf_layerdrop.inject_layerdrop(source, 0.4)
    model = loaded(name, saved(source, tmp_path / "source"), [1, 2, 3], revision="main")
    provenance = model.config.hf_layerdrop
    assert provenance["source"] == "source"
    assert provenance["revision"] == "main"
    assert provenance["keep_layers"] == provenance["root_keep_layers"] == {"encoder": [1, 2, 3], "decoder": [1, 2, 3]}
    assert provenance["rates"] == {"encoder": [0, 0, 0], "decoder": [0, 0, 0]}
    assert provenance["trained_with"]["rate"] == 0.4
    twice = loaded(name, saved(model, tmp_path / "cut"), [0, 2])
    assert twice.config.hf_layerdrop["keep_layers"] == {"encoder": [0, 2], "decoder": [0, 2]}
    assert twice.config.hf_layerdrop["root_keep_layers"] == {"encoder": [1, 3], "decoder": [1, 3]}
    assert twice.config.hf_layerdrop["source"] == "cut"
    assert_same_tensors(twice.state_dict(), cut_by_hand(source, keep_all_stacks(source, [1, 3])).state_dict())
    assert str(tmp_path) not in json.dumps(twice.config.to_dict()["hf_layerdrop"])


@pytest.mark.parametrize("native", [0.0, 0.9])
def test_native_fields_of_a_cut_are_floats_and_zero(native, tmp_path):
    source = build("BartForConditionalGeneration", encoder_layerdrop=native, decoder_layerdrop=native)
    model = loaded("BartForConditionalGeneration", saved(source, tmp_path / "source"))
    written = json.loads((saved(model, tmp_path / "cut") / "config.json").read_text())
    assert [(written[field], type(written[field])) for field in ("encoder_layerdrop", "decoder_layerdrop")] == [
        (0.0, float)
    ] * 2
    batch = batch_for("BartForConditionalGeneration")
    again = plain("BartForConditionalGeneration").from_pretrained(tmp_path / "cut")
    assert torch.equal(output_of(again.train(), batch), output_of(again.eval(), batch))
    assert torch.equal(output_of(model.train(), batch), output_of(model.eval(), batch))


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [[4], [-5], [0, 0], [], 0, 5, "2:2", "::-1", "every_othr", {"middle": 2}, [True]], ids=repr
)
def test_keep_layers_that_do_not_fit_are_refused_before_weights_are_read(spec, tmp_path):
    saved(build("BertModel"), tmp_path)
    with pytest.raises(KeepLayersError) as error:
        named("BertModel").from_pretrained(tmp_path, keep_layers=spec)
    assert "\n" not in str(error.value)


def test_a_bare_spec_on_two_stacks_names_them(tmp_path):
    saved(build("BartModel"), tmp_path)
    with pytest.raises(KeepLayersError, match=r"encoder.*decoder"):
        named("BartModel").from_pretrained(tmp_path, keep_layers="::2")


def test_albert_is_refused(tmp_path):
    config = AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    saved(AlbertModel(config), tmp_path)
    for load in (hf_layerdrop.AutoLayerDropModel.from_pretrained, load_checkpoint):
        with pytest.raises(UnsupportedModelError, match="ALBERT runs one shared layer"):
            load(tmp_path, keep_layers=2)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 400)


def lose_a_layer(folder):
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "layer.2." not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lose_the_config(folder):
    (folder / "config.json").unlink()


def break_the_config(folder):
    (folder / "config.json").write_text("{")


def lose_the_weights(folder):
    (folder / "model.safetensors").unlink()


def count_another_depth(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))


@pytest.mark.parametrize(
    "damage", [truncate, garble, lose_a_layer, lose_the_config, break_the_config, lose_the_weights, count_another_depth]
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage, tmp_path):
    damage(saved(build("BertForMaskedLM"), tmp_path))
    for load in (named("BertForMaskedLM").from_pretrained, load_checkpoint):
        with pytest.raises(CheckpointError) as error:
            load(tmp_path, keep_layers=[0, 1])
        assert "\n" not in str(error.value)
        assert tmp_path.name in str(error.value) or "layers" in str(error.value)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    saved(build("RobertaForMaskedLM"), tmp_path)
    for keep_layers in (None, [0, 1]):
        with pytest.raises(CheckpointError, match=r"'roberta'.*LayerDrop|'roberta'.*'bert'"):
            named("BertForMaskedLM").from_pretrained(tmp_path, keep_layers=keep_layers)


def test_a_checkpoint_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        named("BertForMaskedLM").from_pretrained(tmp_path / "nowhere", keep_layers=[0])


# --- The pieces -----------------------------------------------------------------------------------


def test_load_plain_returns_the_transformers_class_itself(head, tmp_path):
    source = build(head)
    model = load_plain(plain(head), saved(source, tmp_path), keep_layers=keep_all_stacks(source, KEPT))
    assert type(model) is plain(head)
    assert not any("LayerDrop" in type(module).__name__ for module in model.modules())
    again = plain(head).from_pretrained(saved(model, tmp_path / "again"))
    assert_same_tensors(again.state_dict(), cut_by_hand(source, keep_all_stacks(source, KEPT)).state_dict())


def test_keep_weights_renumbers_layers_and_passes_all_else_in_order():
    model = build("BartModel")
    stacks = find_stacks(model)
    places = WeightNames(model, stacks)
    names = ["shared.weight", *[f"{stack}.layers.{layer}.fc1.bias" for stack in stacks for layer in (0, 1, 10, 2, 3)]]
    weights = {name: object() for name in names if ".10." not in name}
    kept = {"encoder": (1, 3), "decoder": (0,)}
    found = dict(keep_weights(weights, places, kept))
    assert list(found) == [
        "shared.weight",
        "encoder.layers.0.fc1.bias",
        "encoder.layers.1.fc1.bias",
        "decoder.layers.0.fc1.bias",
    ]
    assert found["encoder.layers.0.fc1.bias"] is weights["encoder.layers.1.fc1.bias"]
    assert found["encoder.layers.1.fc1.bias"] is weights["encoder.layers.3.fc1.bias"]
    with pytest.raises(CheckpointError, match="hold 5 layers"):
        dict(keep_weights({name: object() for name in names}, places, kept))


def test_the_source_folder_is_not_touched(tmp_path):
    source = saved(build("BertForMaskedLM"), tmp_path / "source")
    shutil.copytree(source, tmp_path / "copy")
    model = loaded("BertForMaskedLM", source)
    model.train()(**batch_for("BertForMaskedLM"))
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}


# --- Layers that a checkpoint does not hold whole -------------------------------------------------


@pytest.mark.parametrize("kept", [[1, 3], [3], 4])
def test_a_kept_layer_that_lacks_a_weight_is_refused_and_never_made_up(kept, tmp_path):
    saved(build("BertForSequenceClassification"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.3.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks .*query.weight' of layer 3 of the encoder"):
        named("BertForSequenceClassification").from_pretrained(tmp_path, keep_layers=kept)
    whole = named("BertForSequenceClassification").from_pretrained(tmp_path, keep_layers=[0, 2])
    assert len(whole.bert.encoder.layer) == 2


def test_what_every_layer_lacks_is_new_by_design(tmp_path):
    saved(build("BertModel"), tmp_path)
    settings = {"is_decoder": True, "add_cross_attention": True, "keep_layers": KEPT}
    model, info = named("BertLMHeadModel").from_pretrained(tmp_path, output_loading_info=True, **settings)
    assert any("layer.1.crossattention" in name for name in info["missing_keys"])
    assert model.config.num_hidden_layers == 2


def test_loading_info_comes_where_it_is_asked_for_alone(tmp_path):
    saved(build("BertModel"), tmp_path)
    assert isinstance(named("BertModel").from_pretrained(tmp_path, keep_layers=2), BertModel)
    model, info = named("BertModel").from_pretrained(tmp_path, keep_layers=2, output_loading_info=True)
    assert isinstance(model, BertModel)
    assert not info["missing_keys"]
