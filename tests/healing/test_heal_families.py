"""Healing as a whole in families that differ: two stacks, tied weights, transposed weights, half precision."""

import copy
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, Seq2SeqTrainingArguments, TrainingArguments, set_seed

from conftest import layers_of
from hf_layerdrop import HealingConfig, heal, load_checkpoint
from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.from_config import describe_model

LINES = [f"the {kind} film number {number} is {kind} again" for number in range(12) for kind in ("good", "bad", "long")]
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2}
FAMILIES = {
    "llama": ("llama-4x16", {"initializer_range": 0.3, "tie_word_embeddings": True}),
    "llama-bf16": ("llama-4x16", {"initializer_range": 0.3}),
    "gpt2": ("gpt2-4x16", {"initializer_range": 0.3}),
    "bart": ("bart-4x16", {"init_std": 0.3}),
    "t5": ("t5", {"initializer_factor": 2.0, **T5}),
}


def data_of(family):
    task = load_task("translation" if family in ("bart", "t5") else "clm")
    rows = Dataset.from_dict(dict.fromkeys(task.text_columns, LINES))
    train, validation = (task.kind.check(some, task, "here") for some in (rows, rows.select(range(12))))
    return TaskData(task, train, {"validation": validation})


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def checkpoint(family, tmp_path):
    described, more = FAMILIES[family]
    task = data_of(family).task
    shape = describe_model(described if "-" in described else "bart-4x16", task.head, positions=32, vocab_size=300)
    tokenizer = shape.make_tokenizer(LINES)
    if described == "t5":
        special = {"decoder_start_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        special["pad_token_id"] = tokenizer.pad_token_id
        config = AutoConfig.for_model("t5", vocab_size=len(tokenizer), **special, **more)
    else:
        config = shape.make_config(tokenizer, **more)
    set_seed(0)
    model = task.model_class.auto_class.from_config(config)
    (model.bfloat16() if family.endswith("bf16") else model).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def arguments_of(family, folder, **more):
    fields = {"max_steps": 3, "learning_rate": 1e-5, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    fields |= {"per_device_train_batch_size": 8, "logging_strategy": "no", **more}
    if family in ("bart", "t5"):
        return Seq2SeqTrainingArguments(str(folder), predict_with_generate=True, generation_max_length=8, **fields)
    return TrainingArguments(str(folder), **fields)


@pytest.mark.parametrize("method", ["map", "lora", "distill"])
def test_a_plain_checkpoint_in_the_precision_that_it_had(method, family, checkpoint, tmp_path):
    arguments = arguments_of(family, tmp_path / "unused")
    before = copy.deepcopy(arguments.to_dict())
    healing = HealingConfig((method,), rows=8)
    run = heal(data_of(family), str(checkpoint), arguments, tmp_path / "out", keep_layers=2, healing=healing)
    assert arguments.to_dict() == before
    assert not (tmp_path / "unused").exists()
    healed, whole = load_checkpoint(tmp_path / "out"), load_checkpoint(checkpoint)
    assert {len(layers) for layers in layers_of(healed).values()} == {2}
    assert healed.dtype == whole.dtype == (torch.bfloat16 if family.endswith("bf16") else torch.float32)
    assert healed.state_dict().keys() <= whole.state_dict().keys()
    cut = load_checkpoint(checkpoint, keep_layers=2).state_dict()
    changed = [
        name
        for name, weight in load_file(tmp_path / "out" / "model.safetensors").items()
        if not torch.equal(weight, cut[name])
    ]
    if method == "map":
        kept = "was kept" in run.stages[-1].note
        assert kept or "was not kept" in run.stages[-1].note
        assert bool(changed) == kept
    else:
        assert changed


@pytest.mark.parametrize("family", ["llama-bf16"], indirect=True)
def test_weights_in_half_precision_learn_as_those_in_float32_do(family, checkpoint, tmp_path):
    whole = load_checkpoint(checkpoint).float()
    shutil.copytree(checkpoint, tmp_path / "float32")
    whole.save_pretrained(tmp_path / "float32")
    weights = []
    for start in (checkpoint, tmp_path / "float32"):
        arguments = arguments_of(family, tmp_path / "unused", max_steps=6)
        output = tmp_path / f"from-{start.name}"
        run = heal(data_of(family), str(start), arguments, output, keep_layers=2, healing=HealingConfig(("whole",)))
        # What is no weight, such as rotary frequencies, was not rounded: the model scores as its checkpoint does.
        tensors = load_checkpoint(output).to(run.model.device).named_buffers()
        assert all(torch.equal(value, run.model.get_buffer(name)) for name, value in tensors)
        weights.append(load_file(output / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name].bfloat16()) for name, value in weights[0].items())


def test_other_labels_are_refused_though_they_are_as_many(tmp_path):
    from classifiers import save_classifier

    folder = save_classifier(tmp_path / "model", id2label={0: "POSITIVE", 1: "NEGATIVE"})
    rows = Dataset.from_dict({"sentence": ["good film", "bad film"] * 4, "labels": [1, 0] * 4})
    data = TaskData(load_task("sst2"), rows, {"validation": rows})
    arguments = arguments_of("bert", tmp_path / "unused")
    with pytest.raises(TaskError, match="the labels negative, positive, in this order, but "):
        heal(data, str(folder), arguments, tmp_path / "out", keep_layers=2)
    assert not (tmp_path / "out").exists()
    config = AutoConfig.from_pretrained(folder)
    config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    config.save_pretrained(folder)
    heal(data, str(folder), arguments, tmp_path / "out", keep_layers=2, healing=HealingConfig(("none",)))
    assert AutoModel.from_pretrained(tmp_path / "out").config.id2label[1] == "POSITIVE"
