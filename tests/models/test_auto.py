"""The named and Auto classes: what they are, what they load with, and that they save plainly (promises 10, 11)."""

import inspect
import json
import os
import pickle
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import hf_layerdrop
from conftest import (
    ALL_HEADS,
    assert_same_tensors,
    batch_for,
    build,
    drawn,
    keep_all_stacks,
    layers_of,
    output_of,
    tiny_config,
)
from hf_layerdrop import (
    AutoLayerDropModel,
    AutoLayerDropModelForCausalLM,
    AutoLayerDropModelForSeq2SeqLM,
    AutoLayerDropModelForSequenceClassification,
    LayerDropBartForConditionalGeneration,
    LayerDropBertForSequenceClassification,
    LayerDropBertModel,
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    load_checkpoint,
    remove_layerdrop,
    set_rates,
)
from hf_layerdrop.errors import CheckpointError, LayerDropConfigError, LayerDropStateError, UnsupportedModelError
from hub_server import HubServer

AUTO = {
    "Model": "AutoModel",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
}


def named(head):
    return getattr(hf_layerdrop, f"LayerDrop{head}")


def auto_name(head):
    return next(
        auto
        for end, auto in AUTO.items()
        if head.removeprefix("Bert").removeprefix("Roberta").removeprefix("Bart") == end
    )


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


# --- What the classes are -------------------------------------------------------------------------


def test_every_head_of_the_three_families_has_a_named_class():
    for family in ("bert", "roberta", "bart"):
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        heads = [
            name
            for name in module.__all__
            if inspect.isclass(cls := getattr(module, name))
            and issubclass(cls, PreTrainedModel)
            and "PreTrainedModel" not in name
            and "Pretrained" not in name
        ]
        assert set(heads) - {"BertLayer", "BartPretrainedModel"} <= set(ALL_HEADS), family
        assert all(f"LayerDrop{name}" in hf_layerdrop.__all__ for name in heads if name in ALL_HEADS)
    assert len(ALL_HEADS) == 21


def test_a_named_class_is_its_transformers_class(any_head, tmp_path):
    model = named(any_head).from_pretrained(saved(build(any_head), tmp_path), layerdrop=0.5)
    assert type(model) is named(any_head)
    assert isinstance(model, getattr(transformers, any_head))
    assert layerdrop_state(model).rates == {stack: [0.5] * 4 for stack in layers_of(model)}
    remove_layerdrop(model)


def test_a_model_built_from_a_config_drops_too(any_head):
    torch.manual_seed(0)
    model = named(any_head)(tiny_config(any_head), layerdrop=(0, 1, 0, 1))
    assert drawn(model, batch_for(any_head)) == [keep_all_stacks(model, [0, 2])]
    assert type(model) is named(any_head)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is named(any_head)
    assert drawn(again, batch_for(any_head)) == [keep_all_stacks(model, [0, 2])]


def test_hidden_states_and_attentions_come_out_of_a_loaded_model(any_head, tmp_path):
    source, batch = build(any_head), batch_for(any_head)
    model = named(any_head).from_pretrained(saved(source, tmp_path), attn_implementation="eager")
    flags = {"output_hidden_states": True, "output_attentions": True}
    found, expected = model(**batch, **flags), source(**batch, **flags)
    assert found.keys() == expected.keys()
    for name in expected:
        if "hidden_states" in name or "attentions" in name:
            assert len(found[name]) == len(expected[name])
            assert all(torch.equal(*pair) for pair in zip(found[name], expected[name], strict=True)), name


@pytest.mark.parametrize("head", ALL_HEADS)
def test_auto_classes_choose_by_the_checkpoint(head, tmp_path):
    auto = getattr(hf_layerdrop, auto_name(head).replace("AutoModel", "AutoLayerDropModel"))
    source, batch = build(head), batch_for(head)
    model = auto.from_pretrained(saved(source, tmp_path), layerdrop=0.25, attn_implementation="eager")
    assert type(model) is named(head)
    assert_same_tensors(model.state_dict(), source.state_dict())
    assert torch.equal(output_of(model.eval(), batch), output_of(source, batch))
    assert layerdrop_state(model).rates == {stack: [0.25] * 4 for stack in layers_of(model)}
    cut = auto.from_pretrained(tmp_path, keep_layers=keep_all_stacks(source, [1, 3]))
    assert layerdrop_state(cut).depths == dict.fromkeys(layers_of(source), 2)
    fresh = auto.from_config(tiny_config(head), layerdrop=(1, 0, 0, 1))
    assert type(fresh) is named(head)
    assert drawn(fresh, batch) == [keep_all_stacks(fresh, [1, 2])]


def test_auto_classes_return_other_families_as_their_own_class_injected(tmp_path):
    config = transformers.DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32, dropout=0.0)
    torch.manual_seed(0)
    source = transformers.DistilBertForSequenceClassification(config)
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(saved(source, tmp_path), layerdrop=(0, 1, 0, 1))
    assert type(model) is transformers.DistilBertForSequenceClassification
    ((stack, layers),) = layers_of(model).items()
    assert layerdrop_state(model).rates == {stack: [0, 1, 0, 1]}
    cut = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path, keep_layers=[0, 2])
    assert len(layers_of(cut)[stack]) == 2
    assert torch.equal(layers_of(cut)[stack][1].ffn.lin1.weight, layers[2].ffn.lin1.weight)
    assert not torch.equal(layers_of(cut)[stack][1].ffn.lin1.weight, layers[1].ffn.lin1.weight)


def test_auto_classes_refuse_what_they_cannot_load(tmp_path):
    saved(build("BertModel"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*AutoModelForSeq2SeqLM"):
        AutoLayerDropModelForSeq2SeqLM.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoLayerDropModel()
    with pytest.raises(CheckpointError, match="nowhere"):
        AutoLayerDropModel.from_pretrained(tmp_path / "nowhere")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["SomethingElse"]}))
    with pytest.raises(CheckpointError, match=r"SomethingElse.*AutoLayerDropModel"):
        load_checkpoint(tmp_path)


# --- With which rates a model is loaded -----------------------------------------------------------


def test_left_out_layerdrop_is_zero_for_a_checkpoint_that_knows_none(head, tmp_path):
    model = named(head).from_pretrained(saved(build(head), tmp_path))
    assert layerdrop_state(model).rates == {stack: [0] * 4 for stack in layers_of(model)}
    assert drawn(model, batch_for(head), 3) == [keep_all_stacks(model, [0, 1, 2, 3])] * 3
    assert getattr(model.config, "hf_layerdrop", None) is None


@pytest.mark.parametrize("bart", ["BartForConditionalGeneration", "BartForSequenceClassification", "BartModel"])
def test_left_out_layerdrop_is_barts_own_and_is_applied_once(bart, tmp_path):
    source = build(bart, encoder_layerdrop=0.3, decoder_layerdrop=0.6)
    model = named(bart).from_pretrained(saved(source, tmp_path / "source"))
    assert layerdrop_state(model).rates == {"encoder": [0.3] * 4, "decoder": [0.6] * 4}
    twin = build(bart)
    inject_layerdrop(twin, {"encoder": 0.3, "decoder": 0.6})
    masks = drawn(twin, batch_for(bart), 8)
    torch.manual_seed(1)
    assert drawn(model, batch_for(bart), 8) == masks  # BART's own would drop more, and by torch's generator
    assert len({json.dumps(mask) for mask in masks}) > 4
    overridden = named(bart).from_pretrained(tmp_path / "source", layerdrop=0.0)
    assert drawn(overridden, batch_for(bart), 4) == [keep_all_stacks(source, [0, 1, 2, 3])] * 4
    written = json.loads((saved(model, tmp_path / "saved") / "config.json").read_text())
    assert written["encoder_layerdrop"] == written["decoder_layerdrop"] == 0.0
    assert written["hf_layerdrop"]["rates"] == {"encoder": [0.3] * 4, "decoder": [0.6] * 4}


def test_left_out_layerdrop_is_what_the_checkpoint_was_saved_with(head, tmp_path):
    batch = batch_for(head)
    config = LayerDropConfig(0.4, seed=12, never_drop=(0,))
    model = named(head).from_pretrained(saved(build(head), tmp_path / "source"), layerdrop=config)
    again = named(head).from_pretrained(saved(model, tmp_path / "trained"))
    assert (
        layerdrop_state(again).rates
        == layerdrop_state(model).rates
        == {s: [0, 0.4, 0.4, 0.4] for s in layers_of(model)}
    )
    assert drawn(again, batch, 8) == drawn(model, batch, 8)
    assert again.config.hf_layerdrop["trained_with"]["rate"] is not None
    other = named(head).from_pretrained(tmp_path / "trained", layerdrop=0.1)
    assert layerdrop_state(other).rates == {stack: [0.1] * 4 for stack in layers_of(other)}
    set_rates(model, 0.2)
    changed = named(head).from_pretrained(saved(model, tmp_path / "changed"))
    assert layerdrop_state(changed).rates == {stack: [0, 0.2, 0.2, 0.2] for stack in layers_of(changed)}


def test_rates_of_stacks_that_a_head_does_not_have_are_left_out(tmp_path):
    source = build("BartForConditionalGeneration")
    inject_layerdrop(
        source, LayerDropConfig({"encoder": 0.3, "decoder": 0.6}, never_drop={"encoder": (0,), "decoder": (1,)})
    )
    model = named("BartForCausalLM").from_pretrained(saved(source, tmp_path))
    assert layerdrop_state(model).rates == {"decoder": [0.6, 0, 0.6, 0.6]}


@pytest.mark.parametrize("entry", [{"rates": 3}, {"rates": {"encoder": [2.0] * 4}}, {"rates": {"encoder": [0.1]}}])
def test_an_entry_of_the_config_that_makes_no_sense_is_refused(entry, tmp_path):
    saved(build("BertModel"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hf_layerdrop": entry}))
    with pytest.raises(CheckpointError, match=r"'hf_layerdrop'.*layerdrop=") as error:
        LayerDropBertModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert layerdrop_state(LayerDropBertModel.from_pretrained(tmp_path, layerdrop=0.2)).rates == {"encoder": [0.2] * 4}


def test_a_depth_sampler_goes_on_as_one(tmp_path):
    config = LayerDropConfig(0.4, sampler="depth", seed=2)
    model = LayerDropBertModel.from_pretrained(saved(build("BertModel"), tmp_path / "source"), layerdrop=config)
    again = LayerDropBertModel.from_pretrained(saved(model, tmp_path / "trained"))
    assert drawn(again, batch_for("BertModel"), 8) == drawn(model, batch_for("BertModel"), 8)


def test_a_pruned_checkpoint_drops_nothing_unasked(head, tmp_path):
    native = {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9} if head.startswith("Bart") else {}
    model = named(head).from_pretrained(saved(build(head, **native), tmp_path / "source"), layerdrop=0.9)
    trained = saved(model, tmp_path / "trained")
    cut = named(head).from_pretrained(trained, keep_layers=keep_all_stacks(model, [0, 2]))
    for pruned in (cut, named(head).from_pretrained(saved(cut, tmp_path / "cut"))):
        assert drawn(pruned, batch_for(head), 4) == [keep_all_stacks(pruned, [0, 1])] * 4
        assert pruned.config.hf_layerdrop["trained_with"]["rate"] == 0.9
    asked = named(head).from_pretrained(tmp_path / "cut", layerdrop=(0, 1))
    assert drawn(asked, batch_for(head)) == [keep_all_stacks(asked, [0])]


@pytest.mark.parametrize(
    "layerdrop", [1.5, (0.1, 0.2), {"middle": 0.1}, {"rate": 0.1, "shape": "round"}, "0.2"], ids=repr
)
def test_a_layerdrop_that_does_not_fit_is_refused(layerdrop, tmp_path):
    saved(build("BertModel"), tmp_path)
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropBertModel.from_pretrained(tmp_path, layerdrop=layerdrop)
    assert "\n" not in str(error.value)
    with pytest.raises(LayerDropConfigError):
        LayerDropBertModel(tiny_config("BertModel"), layerdrop=layerdrop)


def test_load_checkpoint_gives_the_transformers_class_and_injects_only_when_asked(head, tmp_path):
    saved(build(head), tmp_path)
    model = load_checkpoint(tmp_path, keep_layers=keep_all_stacks(build(head), [0, 2]))
    assert type(model) is getattr(transformers, head)
    with pytest.raises(LayerDropStateError):
        layerdrop_state(model)
    assert layerdrop_state(load_checkpoint(tmp_path, layerdrop=0.5)).drops


# --- Promise 10: every save is plain --------------------------------------------------------------


def saves(head, folder):
    """Save a head of ours in every way it can come to be; return the folders with the models saved there."""
    source = saved(build(head), folder / "source")
    keep_layers = keep_all_stacks(build(head), [1, 3])
    found = {
        "whole": named(head).from_pretrained(source, layerdrop=0.5),
        "cut": named(head).from_pretrained(source, keep_layers=keep_layers),
        "cut-with-rates": named(head).from_pretrained(source, keep_layers=keep_layers, layerdrop=0.5),
    }
    return {saved(model, folder / name): model.eval() for name, model in found.items()}


def test_a_saved_config_is_that_of_the_transformers_class(any_head, tmp_path):
    for folder, model in saves(any_head, tmp_path).items():
        assert type(model) is named(any_head), "save_pretrained changed the model"
        written = json.loads((folder / "config.json").read_text())
        assert written["architectures"] == [any_head]
        assert written["model_type"] == model.config.model_type
        depth = 4 if folder.name == "whole" else 2
        for stack in layers_of(model):
            assert written[f"{stack}_layers" if any_head.startswith("Bart") else "num_hidden_layers"] == depth
        assert "auto_map" not in written
        again = getattr(transformers, any_head).from_pretrained(
            folder, attn_implementation=model.config._attn_implementation
        )
        assert_same_tensors(again.state_dict(), model.state_dict())
        assert torch.equal(output_of(again, batch_for(any_head)), output_of(model, batch_for(any_head)))


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(55))]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


STRANGER = """
import json, sys
from importlib.abc import MetaPathFinder


class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_layerdrop":
            raise ImportError("this process has no hf_layerdrop")


sys.meta_path.insert(0, Refuse())
try:
    import hf_layerdrop
    sys.exit("hf_layerdrop was imported")
except ImportError:
    pass
import torch, transformers

for job in json.load(open(sys.argv[1])):
    model = getattr(transformers, job["auto"]).from_pretrained(job["folder"], attn_implementation="eager")
    expected = torch.load(job["folder"] + "/expected.pt")
    assert type(model).__name__ == job["head"], (type(model), job)
    assert not hasattr(type(model), "layerdrop_state") and "LayerDrop" not in type(model).__name__
    with torch.no_grad():
        for training in (False, True):
            outputs = model.train(training)(**expected["batch"])
            assert torch.equal(outputs[job["output"]], expected["output"]), (job, training)
    if "tokens" in expected:
        for cached in (True, False):
            settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 1}
            tokens = model.eval().generate(**expected["batch"], **settings, use_cache=cached)
            assert torch.equal(tokens, expected["tokens"]), (job, cached)
    if "scores" in expected:
        classify = transformers.pipeline("text-classification", job["folder"], top_k=None)
        found, wanted = classify("w3 w7 w9")[0], expected["scores"][0]
        assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted], (found, wanted)
        assert all(abs(a["score"] - b["score"]) < 1e-5 for a, b in zip(found, wanted, strict=True)), (found, wanted)
print("all equal")
"""


def test_a_process_without_hf_layerdrop_loads_every_cut_model_and_computes_the_same(tmp_path):
    jobs = []
    for head in ALL_HEADS:
        folder = tmp_path / head
        source = saved(build(head), folder / "source")
        keep_layers = keep_all_stacks(build(head), [1, 3])
        model = named(head).from_pretrained(source, keep_layers=keep_layers, attn_implementation="eager").eval()
        batch = batch_for(head)
        expected = {"batch": batch, "output": output_of(model, batch).detach()}
        whole = output_of(build(head), batch)
        assert not torch.allclose(expected["output"], whole, atol=1e-3)
        if model.can_generate() and head not in ("BartForSequenceClassification",):
            settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 1}
            expected["tokens"] = model.generate(**batch, **settings)
        saved(model, folder / "cut")
        tokenizer().save_pretrained(folder / "cut")
        if head == "BertForSequenceClassification":
            classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer(), top_k=None)
            expected["scores"] = classify("w3 w7 w9")
        torch.save(expected, folder / "cut" / "expected.pt")
        names = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
        output = next(name for name in names if name in model(**batch))
        jobs.append({"head": head, "auto": auto_name(head), "folder": str(folder / "cut"), "output": output})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "jobs.json")]
    answer = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert answer.stdout.strip() == "all equal", answer.stderr[-3000:]


@pytest.mark.parametrize("push", ["save_pretrained", "push_to_hub"])
def test_what_is_uploaded_while_saving_is_plain(push, tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(
            "transformers.utils.hub._hf_api", None
        )  # one client for the whole process, made for another Hub
        name = "BertForSequenceClassification"
        model = named(name).from_pretrained(saved(build(name), tmp_path / "source"), keep_layers=[0, 2])
        if push == "save_pretrained":
            model.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="alice/mine")
        else:
            model.push_to_hub("alice/mine")
        assert type(model) is named(name)
        uploaded = json.loads(server.repos["alice/mine"].files()["config.json"])
    assert uploaded["architectures"] == [name]
    assert uploaded["num_hidden_layers"] == 2


def test_a_save_that_fails_leaves_the_model_as_it_was(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = LayerDropBertModel(tiny_config("BertModel"), layerdrop=(0, 1, 0, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").mkdir()
    with pytest.raises(OSError, match=r"config\.json"):
        model.save_pretrained(tmp_path / "out")
    assert type(model) is LayerDropBertModel
    assert drawn(model, batch_for("BertModel")) == [{"encoder": [0, 2]}]


def test_trainers_checkpoints_are_plain_and_pruned_ones_resume(tmp_path):
    model = LayerDropBertForSequenceClassification(tiny_config("BertForSequenceClassification"), layerdrop=0.5)
    data = [{"input_ids": torch.arange(5, 12), "labels": row % 2} for row in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=9
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    written = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
    assert written["architectures"] == ["BertForSequenceClassification"]
    assert written["hf_layerdrop"]["rates"] == {"encoder": [0.5] * 4}
    assert written["hf_layerdrop"]["seed"] == 9
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert type(again) is transformers.BertForSequenceClassification
    assert_same_tensors(again.state_dict(), model.state_dict())


def test_a_generation_config_comes_along(tmp_path):
    source = build("BartForConditionalGeneration")
    source.generation_config.max_length = 17
    saved(source, tmp_path / "source")
    model = LayerDropBartForConditionalGeneration.from_pretrained(
        tmp_path / "source", keep_layers={"encoder": 2, "decoder": 1}
    )
    again = transformers.BartForConditionalGeneration.from_pretrained(saved(model, tmp_path / "cut"))
    assert again.generation_config.max_length == 17
    assert AutoLayerDropModelForCausalLM.auto_class is transformers.AutoModelForCausalLM
