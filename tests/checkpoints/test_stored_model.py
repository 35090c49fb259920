"""What a checkpoint holds is what the model has that its config builds; its files say sizes, and which layers exist."""

import json
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from conftest import ALL_HEADS, assert_same_tensors, build
from hf_layerdrop import (
    AutoLayerDropModelForCausalLM,
    AutoLayerDropModelForSequenceClassification,
    prune_layers,
    save_pruned,
)
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.checkpoints.headers import read_checkpoint
from hf_layerdrop.checkpoints.model_class import find_class, find_config
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.checkpoints.stored_model import find_stored_model
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError
from hf_layerdrop.models.auto import load_checkpoint
from hub_server import WRITE_TOKEN, HubServer

TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
BART = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
MODELS = {
    "BertModel": {"num_hidden_layers": 4},
    "BertForSequenceClassification": {"num_hidden_layers": 2, "num_labels": 2},
    "BertForMaskedLM": {"num_hidden_layers": 4},
    "RobertaForQuestionAnswering": {"num_hidden_layers": 4},
    "BartModel": {"encoder_layers": 4, "decoder_layers": 3},
    "BartForCausalLM": {"encoder_layers": 4, "decoder_layers": 3},
    "BartForConditionalGeneration": {"encoder_layers": 2, "decoder_layers": 2},
    "GPT2LMHeadModel": {"n_layer": 4},
    "LlamaForCausalLM": {"num_hidden_layers": 4, "num_key_value_heads": 2},
}


def stored(folder):
    return find_stored_model(read_checkpoint(folder))


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", MODELS)
def test_stacks_are_those_of_the_model_in_memory_and_sizes_those_of_its_files(name, tmp_path):
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**TINY, **BART, **MODELS[name]))
    model.save_pretrained(tmp_path)
    found = stored(tmp_path)
    assert found.depths == depths_of(model)
    assert found.architecture == name
    buffers = [buffer for buffer_name, buffer in model.named_buffers() if buffer_name in found.headers.tensors]
    assert found.parameters == model.num_parameters() + sum(buffer.numel() for buffer in buffers)
    written = json.loads((tmp_path / "config.json").read_text())
    for stack in found.stacks:
        layers = find_stacks(model)[stack.name].layers(model)
        assert stack.path == find_stacks(model)[stack.name].path
        assert stack.parameters == tuple(sum(w.numel() for w in layer.state_dict().values()) for layer in layers)
        assert stack.nbytes == tuple(4 * count for count in stack.parameters)
        assert written[stack.config_field] == stack.depth


def test_experts_that_lie_apart_belong_to_their_layer(tmp_path):
    """As in published checkpoints of the family; the model holds them as one tensor."""
    config = MixtralConfig(**TINY, num_hidden_layers=3, num_key_value_heads=2, num_local_experts=4)
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert any("experts.3." in name for name in load_file(tmp_path / "model.safetensors"))
    (stack,) = stored(tmp_path).stacks
    assert stack.parameters == tuple(sum(w.numel() for w in layer.parameters()) for layer in model.model.layers)


def test_a_part_of_a_composite_model_is_counted_by_its_own_config(tmp_path):
    part = {**TINY, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config=part, vision_config={**part, "num_hidden_layers": 3, "image_size": 8, "patch_size": 4}
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    fields = {stack.name: (stack.depth, stack.config_field) for stack in stored(tmp_path).stacks}
    assert fields == {"text": (2, "text_config.num_hidden_layers"), "vision": (3, "vision_config.num_hidden_layers")}


def test_models_without_layers_of_their_own_are_refused_with_the_reason(tmp_path):
    config = transformers.AlbertConfig(**TINY, embedding_size=8)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "albert")
    with pytest.raises(UnsupportedModelError, match="ALBERT"):
        stored(tmp_path / "albert")
    BertModel(BertConfig(**TINY, num_hidden_layers=0)).save_pretrained(tmp_path / "flat")
    with pytest.raises(UnsupportedModelError, match=r"no stack of layers.*num_hidden_layers = 0"):
        stored(tmp_path / "flat")


# --- Files that hold other layers than the config says ---------------------------------------------


@pytest.fixture
def bert(tmp_path):
    build("BertForSequenceClassification").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def without(*layers):
    def change(weights):
        dropped = tuple(f"bert.encoder.layer.{layer}." for layer in layers)
        return {name: weight for name, weight in weights.items() if not name.startswith(dropped)}

    return change


@pytest.mark.parametrize(
    ("dropped", "said"), [((3,), "hold 3 layers.*num_hidden_layers = 4"), ((2,), r"0 to 3, without 2\)")], ids=repr
)
def test_weights_that_lack_a_layer_are_refused(dropped, said, bert):
    change_weights(bert, without(*dropped))
    for look in (stored, load_checkpoint, lambda folder: load_checkpoint(folder, keep_layers=[0])):
        with pytest.raises(CheckpointError, match=said):
            look(bert)


def test_weights_of_more_layers_are_refused(bert):
    change_config(bert, num_hidden_layers=3)
    for look in (stored, load_checkpoint, lambda folder: load_checkpoint(folder, keep_layers=[0])):
        with pytest.raises(CheckpointError, match=r"hold 4 layers.*num_hidden_layers = 3"):
            look(bert)
    assert load_checkpoint(bert, num_hidden_layers=3).config.num_hidden_layers == 3  # asked for on purpose


def test_a_decoder_that_contradicts_the_config_is_refused_though_the_encoder_fits(tmp_path):
    build("BartModel").save_pretrained(tmp_path)
    change_config(tmp_path, decoder_layers=3)
    with pytest.raises(CheckpointError, match=r"decoder, but .*decoder_layers = 3"):
        stored(tmp_path)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 5000}, {"num_hidden_layers": 10**9}], ids=repr)
def test_a_config_of_very_many_layers_is_refused_before_a_model_of_so_many_is_built(fields, bert):
    change_config(bert, **fields)
    begin = time.process_time()
    for look in (stored, load_checkpoint, lambda folder: load_checkpoint(folder, keep_layers=[0])):
        with pytest.raises(CheckpointError, match=f"num_hidden_layers = {fields['num_hidden_layers']}, .*for 4 layers"):
            look(bert)
    assert time.process_time() - begin < 5  # to build 5,000 layers once takes 13 seconds


def test_a_config_that_builds_nothing_is_refused_in_one_sentence(bert):
    change_config(bert, num_attention_heads=3)
    with pytest.raises(CheckpointError, match="builds no BertForSequenceClassification") as error:
        stored(bert)
    assert "\n" not in str(error.value)


# --- Blocks that the model class passes over -------------------------------------------------------

KEPT = [0, 2]


@pytest.fixture
def predicting(tmp_path, monkeypatch):
    """A checkpoint with a block for further predictions after its last layer, as DeepSeek publishes them."""
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.4.*"])
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **TINY, num_hidden_layers=4, num_key_value_heads=2, moe_intermediate_size=8, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, initializer_range=0.3,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "whole")

    def with_block(weights):
        last = {name: weight for name, weight in weights.items() if name.startswith("model.layers.3.")}
        more = {name.replace("layers.3.", "layers.4."): weight.clone() for name, weight in last.items()}
        return weights | more | {"model.layers.4.eh_proj.weight": torch.ones(16, 32)}

    change_weights(tmp_path / "whole", with_block)
    return model, tmp_path / "whole"


def test_what_the_class_passes_over_is_neither_counted_nor_a_contradiction(predicting, capsys):
    model, folder = predicting
    found = stored(folder)
    assert found.depths == {"layers": 4}
    buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if name in found.headers.tensors)
    assert found.parameters == model.num_parameters() + buffers
    assert len(found.ignored) > 1
    capsys.readouterr()
    assert run(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == found.parameters
    assert [trap["name"] for trap in facts["traps"]].count("passed over") == 1


@pytest.mark.parametrize("door", ["from_pretrained", "save_pruned", "streamed", "prune"])
def test_every_door_cuts_it_and_leaves_out_what_is_passed_over(door, predicting, tmp_path, monkeypatch):
    model, folder = predicting
    out = tmp_path / "out"
    if door == "from_pretrained":
        AutoLayerDropModelForCausalLM.from_pretrained(folder, keep_layers=KEPT).save_pretrained(out)
    elif door == "prune":
        assert run(["prune", str(folder), "--keep-layers", "0,2", "--output", str(out), "--no-tokenizer"]) == 0
    else:
        more = {} if door == "streamed" else {"dtype": torch.float32}  # with it, the model is built
        save_pruned(folder, out, keep_layers=KEPT, tokenizer=False, **more)
    assert not [name for name in load_file(out / "model.safetensors") if ".layers.2." in name or ".layers.4." in name]
    monkeypatch.undo()
    cut, info = DeepseekV3ForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(8)[None]
    whole = model(ids).logits
    prune_layers(model, KEPT)
    assert torch.equal(cut(ids).logits, model(ids).logits)
    assert not torch.equal(cut(ids).logits, whole)


def test_a_block_that_the_class_does_not_name_is_a_contradiction(predicting, monkeypatch):
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.61.*"])
    with pytest.raises(CheckpointError, match="hold 5 layers"):
        stored(predicting[1])


# --- Which class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [*ALL_HEADS, "GPT2Model", "GPT2LMHeadModel", "T5Model", "T5EncoderModel"])
def test_a_missing_architecture_is_read_from_the_weights(head, tmp_path):
    small = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 20}
    small_t5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 20}
    others = {"GPT2": small, "T5": small_t5}
    cls = getattr(transformers, head)
    fields = next((fields for prefix, fields in others.items() if head.startswith(prefix)), None)
    model = build(head) if fields is None else cls(cls.config_class(**fields)).eval()
    model.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=None)
    assert find_class(tmp_path, {}) is cls
    assert stored(tmp_path).architecture == head
    assert_same_tensors(load_checkpoint(tmp_path).state_dict(), model.state_dict())


def test_without_a_head_it_is_the_base_model(tmp_path):
    """Also where the names have the prefix of a model with one, and the base model's own pooler is not there."""
    build("BertForMaskedLM").save_pretrained(tmp_path)
    change_config(tmp_path, architectures=None)
    change_weights(tmp_path, lambda weights: {n: w for n, w in weights.items() if not n.startswith("cls.")})
    assert find_class(tmp_path, {}) is BertModel


def test_a_pickle_names_no_class_and_is_not_opened(bert):
    change_config(bert, architectures=None)
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="AutoLayerDropModelFor"):
        find_class(bert, {"use_safetensors": False})


# --- Code of its own, adapters, GGUF ---------------------------------------------------------------

OWN_CODE = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
DOORS = {
    "inspect": lambda folder, out: run(["inspect", str(folder)]),
    "prune": lambda folder, out: run(
        ["prune", str(folder), "--keep-layers", "2", "--output", str(out), "--no-tokenizer"]
    ),
}


@pytest.fixture
def own_code(bert, tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("the user was asked at the terminal")

    (bert / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    monkeypatch.setattr("builtins.input", asked)
    return bert


@pytest.mark.parametrize("model_type", ["their_own", None])
@pytest.mark.parametrize("door", DOORS)
def test_code_of_a_checkpoint_is_not_run_unless_asked(door, model_type, own_code, tmp_path, capsys):
    change_config(own_code, model_type=model_type, auto_map=OWN_CODE)
    capsys.readouterr()
    assert DOORS[door](own_code, tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert "not run unless you ask" in line
    assert "trust_remote_code=True" in line
    with pytest.raises(CheckpointError, match="not run unless you ask"):
        load_checkpoint(own_code, keep_layers=2)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_model_that_transformers_has_needs_no_code_of_its_own(own_code, tmp_path):
    change_config(own_code, auto_map=OWN_CODE)
    assert all(door(own_code, tmp_path / "out") == 0 for door in DOORS.values())
    assert (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def adapter(bert, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = transformers.BertForSequenceClassification.from_pretrained(bert)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_shown_with_its_base(adapter, bert, monkeypatch, capsys):
    assert read_headers(adapter).tensors == read_checkpoint(bert).tensors
    capsys.readouterr()
    assert run(["inspect", str(adapter), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == str(adapter)
    assert facts["stacks"][0]["depth"] == 4
    assert facts["adapter"] == {"base": str(bert), "type": "LORA", "parameters": 4 * 2 * 2 * 16}
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["inspect", str(adapter)]) == 0
    assert "LORA" in capsys.readouterr().out


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"base_model_name_or_path": 3}'])
def test_an_adapter_that_names_no_base_is_refused(config, adapter, capsys):
    (adapter / "adapter_config.json").write_text(config)
    assert run(["inspect", str(adapter)]) == 2
    assert "names no base_model_name_or_path" in capsys.readouterr().err


def test_an_adapter_of_itself_is_refused(adapter, capsys):
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    assert run(["inspect", str(adapter)]) == 2
    assert "is an adapter itself" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home", token=None)
        yield server


@pytest.fixture
def remote_adapter(adapter, bert, hub):
    """Return the name of an adapter on the Hub, whose base is private."""
    hub.add_folder("alice/base", bert, private=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "alice/base"}))
    hub.add_folder("alice/adapter", adapter)
    return "alice/adapter"


@pytest.mark.parametrize("keep_layers", [None, [0, 2]])
def test_an_adapter_on_the_hub_is_loaded_with_its_private_base(remote_adapter, adapter, keep_layers, tmp_path):
    head = AutoLayerDropModelForSequenceClassification
    where = {"token": WRITE_TOKEN, "cache_dir": tmp_path / "cache", "keep_layers": keep_layers}
    expected = head.from_pretrained(adapter, **where).state_dict()
    for name in (remote_adapter, adapter):
        for model in (head.from_pretrained(name, **where), load_checkpoint(name, **where)):
            assert_same_tensors(model.state_dict(), expected)
        here = load_checkpoint(name, local_files_only=True, **where)
        assert_same_tensors(here.state_dict(), expected)
    assert any("lora" in name for name in expected)
    assert not (tmp_path / "home/hub").exists()


def test_a_private_base_is_not_read_without_a_token(remote_adapter):
    with pytest.raises(CheckpointError, match=r"'alice/base' .*log in"):
        AutoLayerDropModelForSequenceClassification.from_pretrained(remote_adapter)


def test_an_adapter_of_itself_on_the_hub_is_refused(hub):
    hub.add_repo("alice/circle", {"adapter_config.json": b'{"base_model_name_or_path": "alice/circle"}'})
    with pytest.raises(CheckpointError, match="'alice/circle' as its base model, which is an adapter itself"):
        load_checkpoint("alice/circle")


def test_a_repository_without_any_config_is_refused(hub):
    hub.add_repo("alice/empty")
    with pytest.raises(CheckpointError, match="alice/empty"):
        load_checkpoint("alice/empty")


def test_a_config_on_the_hub_is_asked_for_once(bert, hub):
    hub.add_folder("alice/model", bert)
    find_config("alice/model", {})
    hub.requests.clear()
    find_config("alice/model", {})
    assert len(hub.requests) == 1
    hub.requests.clear()
    find_config("alice/model", {"force_download": True})
    assert [request.method for request in hub.requests if request.path.endswith("config.json")] == ["HEAD", "GET"]


@pytest.mark.parametrize("left", ["config.json", ""])
@pytest.mark.parametrize("door", DOORS)
def test_gguf_is_refused_by_name_with_the_next_step(door, left, bert, tmp_path, capsys):
    for path in bert.iterdir():
        if path.name != left:
            path.unlink()
    (bert / "model-q4.gguf").write_bytes(b"GGUF")
    assert DOORS[door](bert, tmp_path / "out") == 2
    assert "gguf_file='model-q4.gguf'" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"gguf_file='model-q4\.gguf'"):
        load_checkpoint(bert, keep_layers=2)
    assert not (tmp_path / "out").exists()


def test_gguf_is_read_by_transformers_and_cut_to_a_plain_checkpoint(tmp_path):
    gguf = pytest.importorskip("gguf")
    config = transformers.LlamaConfig(**TINY, num_hidden_layers=4, num_key_value_heads=2, initializer_range=0.3)
    model = transformers.LlamaForCausalLM(config)
    write_gguf(gguf, tmp_path / "model.gguf", model)
    save_pruned(tmp_path, tmp_path / "out", keep_layers=KEPT, gguf_file="model.gguf", tokenizer=False)
    cut = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prune_layers(model, KEPT)
    ids = torch.arange(8)[None]
    assert torch.equal(cut(ids).logits, model.eval()(ids).logits)


def write_gguf(gguf, path, model):
    """Write a Llama as llama.cpp names its parts."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {"self_attn.o_proj": "attn_output"}
    parts |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    names |= {f"model.layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(4) for ours, theirs in parts.items()}
    for name, weight in model.state_dict().items():
        writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", interleaved(name, weight, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(name, weight, config):
    """Return queries and keys in llama.cpp's order of the pairs that are rotated."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    return (
        weight.view(config.num_attention_heads, 2, -1, weight.shape[1])
        .transpose(1, 2)
        .reshape(weight.shape)
        .contiguous()
    )
