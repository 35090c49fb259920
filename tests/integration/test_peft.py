"""PEFT: adapters train with LayerDrop, are pruned together with their base, and load with plain PEFT."""

import json
import re

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForSequenceClassification, BertTokenizer, Trainer
from transformers.integrations.peft import MIN_PEFT_VERSION

from conftest import assert_same_tensors, batch_for, build, gradients_of, loss_of, recorded_runs
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    DepthEvaluationCallback,
    LayerDropConfig,
    evaluate_depths,
    inject_layerdrop,
    layerdrop_state,
    pipeline,
    prune_layers,
    save_pruned,
    sub_network,
)
from hf_layerdrop.errors import CheckpointError, KeepLayersError, UnsupportedModelError
from hub_server import HubServer
from integrations import ROWS, needed, training_arguments

peft = needed("peft")

HEAD = "BertForSequenceClassification"
LAYER = "base_model.model.bert.encoder.layer"
KEPT = [1, 3]
TARGETS = {
    "names": {"target_modules": ["query", "output.dense"]},
    "all linear": {"target_modules": "all-linear"},
    "layers to transform": {"target_modules": ["query", "value"], "layers_to_transform": [0, 1, 3]},
    "one layer": {"target_modules": ["query", "value"], "layers_to_transform": 3},
    "a pattern with numbers": {"target_modules": r".*layer\.[13]\.attention\.self\.(query|key)"},
    "numbered names": {"target_modules": ["layer.1.attention.self.query", "layer.3.output.dense"]},
    "an excluded layer": {"target_modules": ["query"], "exclude_modules": r".*layer\.[01]\..*"},
    "ranks by layer": {
        "target_modules": ["query", "value"],
        "rank_pattern": {"layer.3.attention.self.query": 2, r"layer\.1\..*value": 3},
        "alpha_pattern": {"layer.1.attention.self.query": 32},
    },
}


def lora(**changes):
    """Return a LoRA config whose adapters do something from the start."""
    settings = {"r": 4, "task_type": "SEQ_CLS", "init_lora_weights": False, "target_modules": ["query", "value"]}
    return peft.LoraConfig(**{**settings, **changes})


def adapted(config=None, **changes):
    torch.manual_seed(1)
    return peft.get_peft_model(build(HEAD), config or lora(**changes)).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch_for(HEAD)).logits


@pytest.mark.parametrize("first", ["inject", "adapt"])
def test_adapters_train_with_layerdrop(first, tmp_path):
    model = build(HEAD)
    if first == "inject":
        inject_layerdrop(model, LayerDropConfig((0, 1, 0, 0.5), seed=0))
    model = peft.get_peft_model(model, lora(init_lora_weights=True))
    if first == "adapt":
        inject_layerdrop(model, LayerDropConfig((0, 1, 0, 0.5), seed=0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(model, training_arguments(tmp_path, weight_decay=0.1), train_dataset=ROWS)
    with recorded_runs(model.get_base_model()) as runs:
        trainer.train()
    counts = [runs["encoder"].count(layer) for layer in range(4)]
    assert counts[:3] == [6, 0, 6]
    assert 0 < counts[3] < 6
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora" in name or "classifier" in name for name in moved)
    assert {layer for layer in range(4) for name in moved if f"layer.{layer}." in name} == {0, 2, 3}
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build(HEAD), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    # a plain adapter: whoever loads it does not need this package
    assert "hf_layerdrop" not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def test_dropped_adapters_get_no_gradient_and_rates_of_0_and_1_equal_a_cut():
    model = adapted().train()
    inject_layerdrop(model, LayerDropConfig((1, 0, 1, 0)))
    found = gradients_of(model, loss_of(model, batch_for(HEAD)))
    for name, gradient in found.items():
        if "lora" in name:
            dropped = any(f"layer.{layer}." in name for layer in (0, 2))
            assert (gradient is None) == dropped, name
    cut = adapted().train()
    prune_layers(cut, KEPT)
    expected = gradients_of(cut, loss_of(cut, batch_for(HEAD)))
    new = {"layer.1.": "layer.0.", "layer.3.": "layer.1."}
    renumbered = {
        re.sub(r"layer\.\d\.", lambda old: new[old[0]], name): gradient
        for name, gradient in found.items()
        if not re.search(r"layer\.[02]\.", name)
    }
    assert_same_tensors(renumbered, expected)


def test_a_rate_of_0_changes_nothing():
    plain, injected = adapted().train(), adapted().train()
    inject_layerdrop(injected, 0.0)
    assert_same_tensors(
        gradients_of(injected, loss_of(injected, batch_for(HEAD))), gradients_of(plain, loss_of(plain, batch_for(HEAD)))
    )


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_base_and_adapter_are_pruned_together(targets, tmp_path):
    model = adapted(**targets)
    whole = logits(model)
    with sub_network(model, KEPT):
        expected = logits(model)
    inject_layerdrop(model, 0.5)
    prune_layers(model, KEPT)
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(expected, whole, atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    base = build(HEAD)
    prune_layers(base, KEPT)
    with torch.no_grad():
        assert not torch.allclose(logits(base), expected, atol=1e-3)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(again), expected)
    assert_same_tensors(again.state_dict(), model.state_dict())

    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_sub_network_is_a_plain_checkpoint(tmp_path):
    build(HEAD).save_pretrained(tmp_path / "base")
    base = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path / "base", layerdrop=0.5)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, lora())
    prune_layers(model, KEPT)
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == ([HEAD], 2)


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers adds adapters itself with peft {MIN_PEFT_VERSION} or later only; `make oldest` runs it",
)
def test_adapters_that_transformers_added_are_pruned_with_their_model(tmp_path):
    torch.manual_seed(1)
    model = build(HEAD)
    model.add_adapter(lora(layers_to_transform=[1, 2]))
    with sub_network(model, KEPT):
        expected = logits(model)
    prune_layers(model, KEPT)
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "adapter")
    again = build(HEAD)
    prune_layers(again, KEPT)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again), expected)


@pytest.fixture
def adapter_folder(tmp_path):
    """An adapter that was trained on a saved base, of which it knows the path."""
    build(HEAD).save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), lora())
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_keep_layers_cuts_an_adapter_folder_with_its_base(adapter_folder):
    whole = AutoLayerDropModelForSequenceClassification.from_pretrained(adapter_folder)
    with sub_network(whole, KEPT):
        expected = logits(whole)
    shallow = AutoLayerDropModelForSequenceClassification.from_pretrained(
        adapter_folder, keep_layers=KEPT, layerdrop=0.25
    )
    assert torch.equal(logits(shallow), expected)
    assert not torch.allclose(expected, logits(whole), atol=1e-3)
    assert layerdrop_state(shallow).rates == {"encoder": [0.25, 0.25]}


@pytest.mark.parametrize("beside", ["base", "adapter"])
@pytest.mark.parametrize("on_the_hub", [False, True])
def test_a_pipeline_takes_the_tokenizer_beside_the_adapter_or_its_base(
    on_the_hub, beside, adapter_folder, tmp_path, monkeypatch
):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film"]
    home = adapter_folder.parent / beside
    (home / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(home / "vocab.txt")).save_pretrained(home)
    with HubServer() as hub:
        hub.use_in_process(monkeypatch, tmp_path / "home")
        hub.add_folder("alice/adapter", adapter_folder)
        name = "alice/adapter" if on_the_hub else adapter_folder
        served = pipeline("text-classification", name, keep_layers=KEPT)
    assert served.tokenizer.get_vocab() == {word: number for number, word in enumerate(words)}
    assert served.model.config.num_hidden_layers == len(KEPT)
    assert served("a film")[0]["label"].startswith("LABEL_")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_is_refused_in_words(text, adapter_folder):
    (adapter_folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="names no base_model_name_or_path"):
        AutoLayerDropModelForSequenceClassification.from_pretrained(adapter_folder, keep_layers=KEPT)


def test_a_pruned_adapter_is_not_put_on_the_whole_base_by_mistake(adapter_folder, tmp_path):
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(adapter_folder)
    prune_layers(model, KEPT)
    model.save_pretrained(tmp_path / "pruned")
    with pytest.raises(OSError, match=r"base cut to 1,3"):
        peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "pruned")


def test_an_adapter_is_not_saved_as_a_plain_checkpoint(adapter_folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        save_pruned(adapter_folder, tmp_path / "out", keep_layers=2, tokenizer=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
        peft.AdaLoraConfig(target_modules=["query"], total_step=10, tinit=2, tfinal=2, task_type="SEQ_CLS"),
        lora(modules_to_save=["encoder.layer.3.output.dense"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_what_cannot_be_cut_is_refused_and_nothing_is_changed(config):
    model = adapted(config)
    with pytest.raises(UnsupportedModelError, match=r"cannot be cut by layers: .*; cut the model first"):
        prune_layers(model, KEPT)
    assert model.get_base_model().config.num_hidden_layers == 4


def test_an_adapter_without_a_kept_layer_is_an_error_and_nothing_is_changed():
    model = adapted(layers_to_transform=[0, 2])
    expected = logits(model)
    with pytest.raises(KeepLayersError, match="no layer that the adapter 'default' adapts"):
        prune_layers(model, KEPT)
    assert torch.equal(logits(model), expected)


def test_depths_are_measured_with_their_adapters(tmp_path):
    model = adapted()
    rows = [{**batch_for(HEAD), "labels": torch.tensor([0, 1, 0])}]
    whole, cut = evaluate_depths(model, rows, depths=[4, KEPT], metric="loss")
    prune_layers(reference := adapted(), KEPT)
    with torch.no_grad():
        assert cut.metrics["loss"] == pytest.approx(reference(**rows[0]).loss.item())
    assert whole.metrics["loss"] != pytest.approx(cut.metrics["loss"], abs=1e-3)

    arguments = training_arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1)
    callback = DepthEvaluationCallback([2])
    trainer = Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[callback])
    trainer.train()
    assert any("eval_depth_2_loss" in entry for entry in trainer.state.log_history)
