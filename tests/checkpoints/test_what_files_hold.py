"""The files are believed, not the config: every weight outside of the cut layers is kept, and none is made up."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MPNetConfig,
    MPNetModel,
)
from transformers.models.auto import modeling_auto

from conftest import assert_same_tensors, build, cut_by_hand, output_of
from hf_layerdrop import AutoLayerDropModel, load_checkpoint, prune_layers, push_pruned_to_hub, save_pruned
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError
from hub_server import HubServer

KEPT = [0, 2]
REPO = "alice/deep"
BATCH = {"input_ids": torch.arange(5, 14)[None]}
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 4}


def written(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def change_weights(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        yield server


def save(source, out, hub):
    save_pruned(source, out, keep_layers=KEPT, tokenizer=False)


def save_of_the_hub(source, out, hub):
    hub.add_folder(REPO, source)
    save_pruned(REPO, out, keep_layers=KEPT, tokenizer=False)


def save_all_layers(source, out, hub):
    save_pruned(source, out, keep_layers=None, tokenizer=False)


def save_in_shards(source, out, hub):
    save_pruned(source, out, keep_layers=KEPT, tokenizer=False, max_shard_size="6KB")
    assert len(list(out.glob("*.safetensors"))) > 2


def prune_command(source, out, hub):
    assert run(["prune", str(source), "--keep-layers", "0,2", "--output", str(out), "--no-tokenizer"]) == 0


def push(source, out, hub):
    push_pruned_to_hub(source, "alice/small", keep_layers=KEPT, tokenizer=False)
    out.mkdir()
    for name, content in hub.repos["alice/small"].files("main").items():
        (out / name).write_bytes(content)


DOORS = [save, save_of_the_hub, save_all_layers, save_in_shards, prune_command, push]


def expected_of(folder, door):
    """Return the weights of the file outside of layers, and those of the kept ones under their new numbers."""
    found = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        parts = name.split(".")
        if "layer" in parts and door is not save_all_layers:
            place = parts.index("layer") + 1
            if int(parts[place]) not in KEPT:
                continue
            parts[place] = str(KEPT.index(int(parts[place])))
        found[".".join(parts)] = weight
    return found


@pytest.mark.parametrize("door", DOORS)
def test_what_a_class_does_not_know_is_kept(door, hub, tmp_path):
    """As in bert-base-uncased, which says that it is a masked language model, and has a pooler and a second head."""
    source = build("BertForPreTraining")
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["BertForMaskedLM"])
    door(tmp_path / "source", tmp_path / "out", hub)
    assert_same_tensors(
        dict(sorted(written(tmp_path / "out").items())), dict(sorted(expected_of(tmp_path / "source", door).items()))
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    again = AutoModel.from_pretrained(tmp_path / "out")
    whole = BertModel.from_pretrained(tmp_path / "source")
    if door is not save_all_layers:
        whole = cut_by_hand(whole, {"encoder": KEPT})
    assert torch.equal(again.eval()(**BATCH).pooler_output, whole.eval()(**BATCH).pooler_output)
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: fill-mask" in card


@pytest.mark.parametrize("door", DOORS)
def test_a_head_that_is_not_there_is_not_made_up(door, hub, tmp_path):
    """As in all-mpnet-base-v2, which says that it is a masked language model, and has a pooler and no such head."""
    torch.manual_seed(0)
    source = MPNetModel(MPNetConfig(**SMALL, initializer_range=0.3))
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["MPNetForMaskedLM"])
    door(tmp_path / "source", tmp_path / "out", hub)
    assert_same_tensors(
        dict(sorted(written(tmp_path / "out").items())), dict(sorted(expected_of(tmp_path / "source", door).items()))
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["MPNetModel"]
    assert "fill-mask" not in (tmp_path / "out/README.md").read_text()
    model, info = MPNetModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    if door is save:
        cut = load_checkpoint(tmp_path / "source")
        assert type(cut) is MPNetModel
        prune_layers(cut, KEPT)
        assert_same_tensors(cut.state_dict(), model.state_dict())


def test_inspect_says_what_is_there(tmp_path, capsys):
    MPNetModel(MPNetConfig(**SMALL)).save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["MPNetForMaskedLM"])
    assert run(["inspect", str(tmp_path / "source"), "--json"]) == 0
    (said,) = [trap["says"] for trap in json.loads(capsys.readouterr().out)["traps"] if trap["name"] == "other class"]
    assert "names MPNetForMaskedLM, but the weights are those of MPNetModel" in said


def test_a_base_without_its_pooler_is_saved_without_it(tmp_path):
    build("BertModel").save_pretrained(tmp_path / "source")
    change_weights(tmp_path / "source", lambda weights: {n: w for n, w in weights.items() if "pooler" not in n})
    save(tmp_path / "source", tmp_path / "out", None)
    assert set(written(tmp_path / "out")) == set(expected_of(tmp_path / "source", save))


T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 4}
SIZES = {
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 60},
    "LlamaForCausalLM": {**SMALL, "num_key_value_heads": 2},
    "ViTForImageClassification": {**SMALL, "image_size": 8, "patch_size": 4},
    "T5ForConditionalGeneration": T5,
    "T5EncoderModel": T5,
}
BASE = [
    ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight"),  # the decoder is tied to it
    ("BertModel", "embeddings.LayerNorm.bias"),
    ("BertForSequenceClassification", "bert.embeddings.position_embeddings.weight"),
    ("GPT2LMHeadModel", "transformer.wte.weight"),
    ("BartForConditionalGeneration", "model.shared.weight"),
    ("T5ForConditionalGeneration", "shared.weight"),
    ("LlamaForCausalLM", "model.embed_tokens.weight"),
    ("LlamaForCausalLM", "model.norm.weight"),
    ("ViTForImageClassification", "vit.embeddings.position_embeddings"),
]


def made(head):
    cls = getattr(transformers, head)
    return cls(cls.config_class(**SIZES[head])) if head in SIZES else build(head)


@pytest.mark.parametrize("keep_layers", [2, None])
@pytest.mark.parametrize(("head", "weight"), BASE)
def test_a_base_without_its_embeddings_is_refused(head, weight, keep_layers, tmp_path):
    made(head).save_pretrained(tmp_path / "source")
    assert weight in load_file(tmp_path / "source/model.safetensors")
    change_weights(tmp_path / "source", lambda weights: {n: w for n, w in weights.items() if n != weight})
    with pytest.raises(CheckpointError, match=f"lacks the weight .*{weight.rpartition('.')[0].rpartition('.')[0]}"):
        save_pruned(tmp_path / "source", tmp_path / "out", keep_layers=keep_layers, tokenizer=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", ["classifier", "output beside the stacks", "output of a language model", "tied"])
def test_a_head_that_is_new_or_tied_is_not_missed(new, tmp_path):
    head, wanted = {
        "classifier": ("BertForMaskedLM", transformers.BertForSequenceClassification),
        "output beside the stacks": ("T5ForConditionalGeneration", transformers.T5ForQuestionAnswering),
        "output of a language model": ("T5EncoderModel", None),
        "tied": ("GPT2LMHeadModel", None),
    }[new]
    made(head).save_pretrained(tmp_path / "source")
    if new == "tied":  # under the name of what shares it
        renamed = {"transformer.wte.weight": "lm_head.weight"}
        change_weights(tmp_path / "source", lambda weights: {renamed.get(n, n): w for n, w in weights.items()})
    save_pruned(tmp_path / "source", tmp_path / "out", keep_layers=2, tokenizer=False, model_class=wanted)
    assert any("emb" in name or "wte" in name or "shared" in name for name in written(tmp_path / "out"))


@pytest.mark.parametrize("dtype", [None, "auto", torch.bfloat16, "bfloat16"])
def test_what_is_left_over_has_the_dtype_that_was_asked_for(dtype, tmp_path):
    build("BertForPreTraining").save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["BertForMaskedLM"])
    save_pruned(tmp_path / "source", tmp_path / "out", keep_layers=2, tokenizer=False, dtype=dtype)
    wanted = torch.float32 if dtype in (None, "auto") else torch.bfloat16
    assert {weight.dtype for weight in written(tmp_path / "out").values()} == {wanted}


def test_old_names_of_what_is_left_over_are_renamed_with_the_rest(tmp_path):
    source = build("BertForPreTraining")
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["BertModel"])
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(weights):
        for new, before in old.items():
            weights = {name.replace(new, before): weight for name, weight in weights.items()}
        return weights

    change_weights(tmp_path / "source", renamed)
    save(tmp_path / "source", tmp_path / "out", None)
    again, info = transformers.BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert_same_tensors(again.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())


def test_a_pickle_says_as_much(tmp_path):
    source = MPNetModel(MPNetConfig(**SMALL))
    source.config.architectures = ["MPNetForMaskedLM"]
    source.config.save_pretrained(tmp_path / "source")
    torch.save(source.state_dict(), tmp_path / "source/pytorch_model.bin")
    save_pruned(tmp_path / "source", tmp_path / "out", keep_layers=KEPT, tokenizer=False, use_safetensors=False)
    assert {name for name in written(tmp_path / "out") if "head" in name} == set()
    assert "pooler.dense.weight" in written(tmp_path / "out")


# --- A config that names no model class ------------------------------------------------------------


NAMED = [
    *(None, [], ["pipeline"], ["AutoModel"], ["BertTokenizer"], ["PreTrainedModel"], ["BertPreTrainedModel"]),
    *(["GPT2LMHeadModel"], "BertForTokenClassification", 3, [3], [None], [""], {"a": 1}, [["BertModel"]]),
]


@pytest.mark.parametrize(
    ("door", "named"),
    [(save, named) for named in NAMED]
    + [(door, named) for door in (save_of_the_hub, prune_command) for named in NAMED[:3]],
)
def test_a_config_that_names_no_model_class_is_saved_as_what_its_weights_are(door, named, hub, tmp_path):
    source = build("BertForTokenClassification")
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=named)
    door(tmp_path / "source", tmp_path / "out", hub)
    assert_same_tensors(
        dict(sorted(written(tmp_path / "out").items())), dict(sorted(expected_of(tmp_path / "source", door).items()))
    )
    assert run(["inspect", str(tmp_path / "source")]) == 0
    again = transformers.BertForTokenClassification.from_pretrained(tmp_path / "out")
    assert_same_tensors(again.state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict())


def test_a_class_that_is_nowhere_is_refused_with_a_way_to_save(tmp_path, capsys):
    source = build("BertModel")
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=["BertWithSomethingElse"])
    change_weights(tmp_path / "source", lambda weights: {**weights, "else.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"BertWithSomethingElse.*model_class="):
        save(tmp_path / "source", tmp_path / "out", None)
    capsys.readouterr()
    assert run(["prune", str(tmp_path / "source"), "--keep-layers", "2", "--output", str(tmp_path / "out")]) == 2
    assert "BertWithSomethingElse" in capsys.readouterr().err
    save_pruned(tmp_path / "source", tmp_path / "out", keep_layers=KEPT, tokenizer=False, model_class=BertModel)
    assert set(written(tmp_path / "out")) == set(expected_of(tmp_path / "source", save))
    in_memory = AutoLayerDropModel.from_pretrained(tmp_path / "source")
    save_pruned(in_memory, tmp_path / "second", keep_layers=KEPT, tokenizer=False)


class OwnConfig(BertConfig):
    model_type = "hf-layerdrop-own"


class OwnModel(BertModel):
    config_class = OwnConfig


class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig


@pytest.fixture
def registered():
    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    AutoModel.register(OwnConfig, OwnModel)
    AutoModelForMaskedLM.register(OwnConfig, OwnForMaskedLM)
    yield
    del transformers.CONFIG_MAPPING._extra_content[OwnConfig.model_type]
    for mapping in (modeling_auto.MODEL_MAPPING, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING):
        del mapping._extra_content[OwnConfig]


@pytest.mark.parametrize("named", [["OwnForMaskedLM"], None], ids=repr)
def test_a_registered_class_is_saved_as_itself(named, registered, tmp_path):
    torch.manual_seed(0)
    source = OwnForMaskedLM(OwnConfig(**SMALL, initializer_range=0.3)).eval()
    source.save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", architectures=named)
    for door in (save, prune_command):
        door(tmp_path / "source", tmp_path / door.__name__, None)
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / door.__name__)
        assert type(again) is OwnForMaskedLM
        cut = OwnForMaskedLM.from_pretrained(tmp_path / "source")
        prune_layers(cut, KEPT)
        assert torch.equal(output_of(again, BATCH), output_of(cut, BATCH))


# --- Depths that nobody has ------------------------------------------------------------------------


@pytest.mark.parametrize("architectures", [None, ["BertModel"]], ids=repr)
@pytest.mark.parametrize("keep_layers", [None, 2])
def test_a_config_on_the_hub_of_very_many_layers_is_refused_before_a_model_is_built(
    keep_layers, architectures, hub, tmp_path
):
    build("BertModel").save_pretrained(tmp_path / "source")
    change_config(tmp_path / "source", num_hidden_layers=10**9, architectures=architectures)
    hub.add_folder(REPO, tmp_path / "source")

    def saved(repo, keep_layers):
        return save_pruned(repo, tmp_path / "out", keep_layers=keep_layers, tokenizer=False)

    for load in (load_checkpoint, AutoLayerDropModel.from_pretrained, saved):
        with pytest.raises(CheckpointError, match=r"num_hidden_layers = 1000000000, .*for 4 layers"):
            load(REPO, keep_layers=keep_layers)
    size = (tmp_path / "source/model.safetensors").stat().st_size
    assert hub.bytes_sent(r"resolve/.*\.safetensors$") < size


def test_a_config_without_architectures_of_very_many_layers_is_refused_on_this_machine_too(tmp_path):
    build("BertModel").save_pretrained(tmp_path)
    change_config(tmp_path, num_hidden_layers=10**9, architectures=None)
    with pytest.raises(CheckpointError, match="for 4 layers"):
        load_checkpoint(tmp_path)


def test_where_headers_are_looked_for_is_obeyed(hub, tmp_path, monkeypatch):
    """Where the class has to be read from the weights, too."""
    build("BertForTokenClassification").save_pretrained(tmp_path / "source/inner")
    change_config(tmp_path / "source/inner", architectures=None)
    files = {f"inner/{path.name}": path.read_bytes() for path in (tmp_path / "source/inner").iterdir()}
    hub.add_repo(REPO, files)
    where = {"subfolder": "inner", "cache_dir": tmp_path / "mine"}
    assert type(load_checkpoint(REPO, **where)) is transformers.BertForTokenClassification
    assert not list((tmp_path / "home").glob("**/config.json"))
    hub.requests.clear()
    assert type(load_checkpoint(REPO, **where, local_files_only=True)) is transformers.BertForTokenClassification
    assert not hub.requests
    with pytest.raises(CheckpointError):
        load_checkpoint(REPO, subfolder="inner", cache_dir=tmp_path / "other", local_files_only=True)
    assert not hub.requests
