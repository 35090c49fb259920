"""Every argument that passes through us to transformers is obeyed as there, or refused; none is taken and ignored."""

from __future__ import annotations

import inspect
import json
import re
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertTokenizer,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    TextClassificationPipeline,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

import hf_layerdrop
from conftest import assert_same_tensors, build
from hf_layerdrop import load_checkpoint, pipeline, prune_layers, save_pruned
from hf_layerdrop.errors import LayerDropConfigError, LayerDropError
from hf_layerdrop.models.arguments import FromPretrained

KEPT = [0, 2]
HEAD, GENERATING = "BertForSequenceClassification", "BertLMHeadModel"


# --- from_pretrained -------------------------------------------------------------------------------


def in_config(name):
    return lambda model: getattr(model.config, name)


def first_weight(model):
    return next(model.parameters()).flatten()[:4].tolist()


def config_with(**fields):
    return BertConfig(**{**build(HEAD).config.to_dict(), **fields})


RATES = ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")
FIELDS = {
    **dict.fromkeys(RATES, 0.25),
    **{"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"},
    **{"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 9, "decoder_start_token_id": 6},
    **{"output_attentions": True, "output_hidden_states": True, "return_dict": False},
    **{"is_decoder": True, "use_cache": False, "tie_word_embeddings": False, "num_labels": 2},
}
# Fields of other models than this one: here they are what any name is that a config has not, and plain transformers
# refuses those.
OF_OTHERS = {"activation_dropout", "attention_dropout", "attn_pdrop", "dropout", "dropout_rate", "embd_pdrop"}
OF_OTHERS |= {"hidden_dropout", "resid_pdrop", "router_aux_loss_coef", "output_router_logits"}
# Of each argument: what is given with it, and what shows in the model that it was obeyed.
GIVEN = {
    **{name: ({name: value}, in_config(name)) for name, value in FIELDS.items()},
    **{name: ({name: 0.25}, in_config(name)) for name in OF_OTHERS},
    "add_cross_attention": ({"add_cross_attention": True, "is_decoder": True}, in_config("add_cross_attention")),
    "add_pooling_layer": ({"add_pooling_layer": False}, lambda model: model.bert.pooler is None),
    "attn_implementation": ({"attn_implementation": "eager"}, in_config("_attn_implementation")),
    "config": ({"config": config_with(hidden_act="relu")}, in_config("hidden_act")),
    "device_map": ({"device_map": {"": "cpu"}}, lambda model: model.hf_device_map),
    "device_mesh": ({"device_mesh": 3}, first_weight),
    "disable_mmap": ({"disable_mmap": True}, first_weight),
    "distributed_config": ({"distributed_config": 3}, first_weight),
    "dtype": ({"dtype": torch.bfloat16}, lambda model: model.dtype),
    "experts_implementation": ({"experts_implementation": "eager"}, in_config("_experts_implementation")),
    "fusion_config": ({"fusion_config": {"nothing": True}}, in_config("fusion_config")),
    "ignore_mismatched_sizes": (
        {"ignore_mismatched_sizes": True, "num_labels": 3},
        lambda model: model.classifier.weight.shape,
    ),
    "kernel_config": ({"kernel_config": 3}, first_weight),
    "key_mapping": ({"key_mapping": {"^nothing": "something"}}, first_weight),
    "max_memory": ({"max_memory": {"cpu": "10MB"}, "device_map": "auto"}, lambda model: model.hf_device_map),
    "offload_buffers": ({"offload_buffers": True, "device_map": "auto"}, lambda model: model.hf_device_map),
    "quantization_config": ({"quantization_config": 3}, first_weight),
    "subfolder": ({"subfolder": "inner"}, first_weight),
    "torch_dtype": ({"torch_dtype": torch.float16}, lambda model: model.dtype),
    "tp_plan": ({"tp_plan": "nonsense"}, first_weight),
    "tp_size": ({"tp_size": 2}, first_weight),
    "use_kernels": ({"use_kernels": False}, first_weight),
    "variant": ({"variant": "fp16"}, lambda model: model.dtype),
}
# What needs more than a folder, by the file in which it is tried.
ELSEWHERE = {
    "pruning/test_loading.py": {"state_dict", "use_safetensors", "output_loading_info", "weights_only"},
    "checkpoints/test_downloads.py": {"cache_dir", "force_download", "local_files_only", "revision", "token"},
    "checkpoints/test_stored_model.py": {"gguf_file"},
    "models/test_own_code.py": {"trust_remote_code", "code_revision"},
    "models/test_auto.py": {"generation_config"},
    "integration/test_peft.py": {"adapter_name", "adapter_kwargs"},
    "nowhere: huggingface_hub has none any more": {"proxies"},
    "nowhere: it is where parts of a model are put that no device has room for": {"offload_folder"},
    "nowhere: it shows how a download goes on": {"tqdm_class"},
    "nowhere: it is for code from the Hub that runs on a GPU": {"allow_all_kernels"},
}


def test_every_argument_is_tried():
    known = set(FromPretrained.__annotations__)
    assert set(GIVEN) | set().union(*ELSEWHERE.values()) == known
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    taken = set(re.findall(r'kwargs\.pop\("([a-z]\w+)"', source)) | set(
        inspect.signature(PreTrainedModel.from_pretrained).parameters
    )
    assert taken - {"cls", "pretrained_model_name_or_path", "model_args", "kwargs", "name"} <= known


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    build(HEAD).save_pretrained(path)
    build(HEAD, seed=1).save_pretrained(path / "inner")
    build(HEAD).half().save_pretrained(path, variant="fp16")
    return path


def outcome(load, look):
    try:
        return look(load())
    except Exception as error:
        return error


def check(found, expected, where):
    if isinstance(expected, Exception):
        assert isinstance(found, Exception), f"{where}: plain transformers refuses it: {expected}"
    else:
        assert isinstance(found, LayerDropError) or found == expected, (where, found)


DOORS = {
    "named class": getattr(hf_layerdrop, f"LayerDrop{HEAD}").from_pretrained,
    "Auto class": hf_layerdrop.AutoLayerDropModelForSequenceClassification.from_pretrained,
    "load_checkpoint": load_checkpoint,
}


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_an_argument_of_from_pretrained_is_obeyed_or_refused(name, folder):
    given, look = GIVEN[name]
    expected = outcome(lambda: getattr(transformers, HEAD).from_pretrained(folder, **given), look)
    is_field = name in FIELDS or name in OF_OTHERS  # which go one way, whoever is asked
    for door, load in list(DOORS.items())[-1 if is_field else 0 :]:
        for kept in [KEPT] if is_field else [None, KEPT]:
            check(outcome(partial(load, folder, keep_layers=kept, **given), look), expected, f"{door}, {kept}")


def test_rates_of_the_models_own_are_obeyed_or_refused(tmp_path):
    named = hf_layerdrop.LayerDropBartModel
    build("BartModel").save_pretrained(tmp_path / "plain")
    model = named.from_pretrained(tmp_path / "plain", encoder_layerdrop=0.5)
    assert hf_layerdrop.layerdrop_state(model).rates == {"encoder": [0.5] * 4, "decoder": [0] * 4}
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(LayerDropConfigError, match=r"encoder_layerdrop=0\.25 .*saved with rates.*layerdrop="):
        named.from_pretrained(tmp_path / "ours", encoder_layerdrop=0.25)
    with pytest.raises(LayerDropConfigError, match=r"decoder_layerdrop=0\.0"):
        hf_layerdrop.AutoLayerDropModel.from_pretrained(tmp_path / "ours", decoder_layerdrop=0.0)
    for folder in ("plain", "ours"):
        with pytest.raises(LayerDropConfigError, match=r"layerdrop= was given"):
            named.from_pretrained(tmp_path / folder, encoder_layerdrop=0.25, layerdrop=0.5)
        for load in (named.from_pretrained, load_checkpoint):
            with pytest.raises(LayerDropConfigError, match="with keep_layers"):
                load(tmp_path / folder, encoder_layerdrop=0.25, keep_layers={"encoder": 2})
    assert load_checkpoint(tmp_path / "ours", encoder_layerdrop=0.25).config.encoder_layerdrop == 0.25


# --- save_pretrained -------------------------------------------------------------------------------

# Arguments of save_pretrained, and what save_pruned does with them.
SAVING = {
    "save_directory": "its own argument",
    "max_shard_size": "obeyed",
    "save_original_format": "obeyed",
    "state_dict": "of loading",
    "token": "of loading",
    "variant": "of loading",
    "is_main_process": "refused",
    "push_to_hub": "refused",
    "save_peft_format": "refused",
    "distributed_checkpoint": "refused",
}


def test_every_argument_of_saving_is_tried():
    taken = set(inspect.signature(PreTrainedModel.save_pretrained).parameters) - {"self", "kwargs"}
    assert taken <= set(SAVING)


def written(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def mixtral():
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    return MixtralForCausalLM(MixtralConfig(**shape, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "given", [{"max_shard_size": "20KB"}, {"max_shard_size": 20_000}, {"save_original_format": False}]
)
def test_an_argument_of_save_pretrained_is_obeyed(given, in_memory, tmp_path):
    source = mixtral()
    source.save_pretrained(tmp_path / "source")
    save_pruned(
        source if in_memory else tmp_path / "source", tmp_path / "ours", keep_layers=KEPT, tokenizer=False, **given
    )
    prune_layers(source, KEPT).save_pretrained(tmp_path / "plain", **given)
    source.save_pretrained(tmp_path / "usual")
    ours, plain, usual = (
        ({file.name for file in folder.glob("*.safetensors")}, set(written(folder)))
        for folder in (tmp_path / "ours", tmp_path / "plain", tmp_path / "usual")
    )
    assert ours == plain
    assert plain != usual


@pytest.mark.parametrize("name", [name for name, what in SAVING.items() if what == "refused"])
def test_an_argument_of_save_pretrained_without_meaning_is_refused(name, tmp_path):
    build(HEAD).save_pretrained(tmp_path / "source")
    for source in (tmp_path / "source", build(HEAD)):
        with pytest.raises(LayerDropError, match=f"{name} is not taken here: "):
            save_pruned(source, tmp_path / "out", keep_layers=KEPT, tokenizer=False, **{name: True})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["", "much", "2 XB", -1, 0, True, 2.5, ["2GB"], "-3GB"], ids=repr)
def test_what_is_no_size_is_refused_before_anything_is_loaded(size, tmp_path):
    with pytest.raises(LayerDropError, match="is no size"):
        save_pruned(tmp_path / "nowhere", tmp_path / "out", keep_layers=KEPT, max_shard_size=size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_shard_size", "6KB"),
        ("variant", "fp16"),
        ("is_main_process", False),
        ("save_original_format", False),
        ("state_dict", {"classifier.bias": torch.ones(2)}),
    ],
)
def test_saving_a_named_class_takes_what_transformers_takes(name, value, tmp_path):
    build(HEAD).save_pretrained(tmp_path / "source")
    for saver in (f"LayerDrop{HEAD}", HEAD):
        cls = getattr(hf_layerdrop, saver, None) or getattr(transformers, saver)
        cls.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / saver, **{name: value})
    ours, plain = tmp_path / f"LayerDrop{HEAD}", tmp_path / HEAD
    assert {file.name for file in ours.iterdir()} == {file.name for file in plain.iterdir()}
    assert_same_tensors(dict(sorted(written(ours).items())), dict(sorted(written(plain).items())))


# --- pipeline --------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", *(f"w{number}" for number in range(52))]


class OwnPipeline(TextClassificationPipeline):
    pass


def tokenizer_of(folder):
    return BertTokenizer.from_pretrained(folder, model_max_length=3)


PIPELINE = {
    "tokenizer": (lambda folder: {"tokenizer": tokenizer_of(folder)}, lambda pipe: pipe.tokenizer.model_max_length),
    "feature_extractor": (
        lambda folder: {"feature_extractor": Wav2Vec2FeatureExtractor(sampling_rate=7)},
        lambda pipe: pipe.feature_extractor.sampling_rate,
    ),
    "image_processor": (
        lambda folder: {"image_processor": ViTImageProcessor(size={"height": 7, "width": 7})},
        lambda pipe: pipe.image_processor.size["height"],
    ),
    "revision": (lambda folder: {"revision": "main"}, lambda pipe: pipe("good film")),
    "use_fast": (lambda folder: {"use_fast": False}, lambda pipe: type(pipe.tokenizer)),
    "token": (lambda folder: {"token": False}, lambda pipe: pipe("good film")),
    "device": (lambda folder: {"device": "cpu"}, lambda pipe: pipe.device),
    "device_map": (lambda folder: {"device_map": {"": "cpu"}}, lambda pipe: pipe.model.hf_device_map),
    "dtype": (lambda folder: {"dtype": torch.bfloat16}, lambda pipe: pipe.model.dtype),
    "trust_remote_code": (lambda folder: {"trust_remote_code": True}, lambda pipe: pipe("good film")),
    "model_kwargs": (
        lambda folder: {"model_kwargs": {"attn_implementation": "eager"}},
        lambda pipe: pipe.model.config._attn_implementation,
    ),
    "pipeline_class": (lambda folder: {"pipeline_class": OwnPipeline}, type),
    "top_k": (lambda folder: {"top_k": None}, lambda pipe: pipe("good film")),
    "batch_size": (lambda folder: {"batch_size": 3}, lambda pipe: pipe._batch_size),
    "code_revision": (lambda folder: {"code_revision": "main"}, lambda pipe: pipe("good film")),
}
OTHERS = {"processor", "video_processor", "config"}  # of other kinds of data; and one with a test of its own


def test_every_argument_of_a_pipeline_is_tried():
    taken = set(inspect.signature(transformers.pipeline).parameters) - {"task", "model", "kwargs"}
    assert taken <= set(PIPELINE) | OTHERS


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    build(HEAD).save_pretrained(path / "whole")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path / "whole")
    save_pruned(path / "whole", path / "cut", keep_layers=KEPT)
    return path


@pytest.mark.parametrize("keep_layers", [None, KEPT], ids=["whole", "cut"])
@pytest.mark.parametrize("name", PIPELINE)
def test_an_argument_of_a_pipeline_is_obeyed_or_refused(name, keep_layers, served):
    give, look = PIPELINE[name]
    source = served / "cut" if keep_layers else served / "whole"
    given = give(source)
    expected = outcome(lambda: transformers.pipeline("text-classification", str(source), **given), look)
    load = partial(pipeline, "text-classification", served / "whole", keep_layers=keep_layers, **given)
    check(outcome(load, look), expected, name)


def test_the_config_of_a_pipeline_is_obeyed(served):
    """Which plain transformers keeps from the model."""
    config = config_with(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    for keep_layers in (None, KEPT):
        found = pipeline("text-classification", served / "whole", keep_layers=keep_layers, config=config)("good film")
        assert found[0]["label"] in ("no", "yes")


def test_a_generation_config_is_obeyed(tmp_path):
    build(GENERATING).save_pretrained(tmp_path)
    wanted = GenerationConfig(max_length=17)
    for keep_layers in (None, KEPT):
        model = load_checkpoint(tmp_path, keep_layers=keep_layers, generation_config=wanted)
        assert model.generation_config.max_length == 17
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [GENERATING]
