"""TRL: SFTTrainer finetunes a tiny language model with LayerDrop; the sub-network generates."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import recorded_runs
from hf_layerdrop import DepthEvaluationCallback, LayerDropConfig, inject_layerdrop, prune_layers
from integrations import needed, training_arguments

trl = needed("trl")

WORDS = ["<pad>", "<unk>", "<eos>", *(f"w{number}" for number in range(40))]
DECODER = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}


def language_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**DECODER)).eval()


def tokenizer():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def finetune(model, folder, **changes):
    rows = [{"text": " ".join(f"w{(row * 7 + step) % 40}" for step in range(8))} for row in range(16)]
    arguments = training_arguments(folder, trl.SFTConfig, max_length=16, **changes)
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )
    with recorded_runs(model) as runs:
        trainer.train()
    return trainer, runs["layers"]


@pytest.mark.parametrize("changes", [{"packing": False}, {"bf16": True}], ids=["default", "bf16"])
def test_its_trainer_drops_layers(changes, tmp_path):
    model = language_model()
    inject_layerdrop(model, LayerDropConfig((0, 1, 0.5, 0), seed=0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer, runs = finetune(model, tmp_path, **{"weight_decay": 0.1, **changes})
    assert {layer: runs.count(layer) for layer in (1, 3)} == {1: 0, 3: runs.count(0)}
    assert 0 < runs.count(2) < runs.count(0)
    for name, weight in trainer.model.state_dict().items():
        if ".layers." in name:
            assert torch.equal(weight, before[name]) == (".layers.1." in name), name
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_finetuned_sub_network_generates_as_its_plain_checkpoint(tmp_path):
    model = language_model()
    inject_layerdrop(model, LayerDropConfig(0.3, seed=0))
    trainer, runs = finetune(model, tmp_path / "training")
    assert len(set(map(runs.count, range(4)))) > 1
    prompt = tokenizer()(["w1 w2 w3", "w9 w10 w11"], return_tensors="pt", return_token_type_ids=False)
    whole = model.eval().generate(**prompt, max_new_tokens=8, do_sample=False)
    prune_layers(model, [0, 3])
    shallow = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert not torch.equal(shallow, whole)
    trainer.save_model(str(tmp_path / "shallow"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "shallow").eval()
    assert plain.config.num_hidden_layers == 2
    assert torch.equal(plain.generate(**prompt, max_new_tokens=8, do_sample=False), shallow)
    assert torch.equal(plain.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False), shallow)


def test_its_adapters_train_with_layerdrop(tmp_path):
    peft = needed("peft")
    model = language_model()
    inject_layerdrop(model, LayerDropConfig((0, 1, 0, 0), seed=0))
    adapters = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, adapters)
    arguments = training_arguments(tmp_path, trl.SFTConfig, max_length=16)
    rows = Dataset.from_list([{"text": "w1 w2 w3 w4 w5"}, {"text": "w6 w7 w8 w9"}] * 4)
    trl.SFTTrainer(model=adapted, args=arguments, train_dataset=rows, processing_class=tokenizer()).train()
    trained = {
        name.partition("layers.")[2][0]
        for name, weight in adapted.named_parameters()
        if "lora_B" in name and weight.abs().sum() > 0
    }
    assert trained == {"0", "2", "3"}


def test_numbers_that_it_collects_stay_with_the_record_and_the_network_that_they_are_of(tmp_path):
    model = language_model()
    inject_layerdrop(model, LayerDropConfig(0.3, seed=0))
    rows = Dataset.from_list([{"text": " ".join(f"w{(row * 7 + step) % 40}" for step in range(8))} for row in range(8)])
    arguments = training_arguments(
        tmp_path, trl.SFTConfig, max_length=16, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[DepthEvaluationCallback([4, 2])],
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2
    assert all({"mean_token_accuracy", "layerdrop_rate", "layerdrop_layers_used"} <= set(entry) for entry in steps)
    whole = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    cut = [entry for entry in trainer.state.log_history if "eval_depth_2_loss" in entry]
    assert len(whole) == len(cut) == 2
    for one, other in zip(whole, cut, strict=True):
        for name in ("loss", "entropy", "mean_token_accuracy"):
            assert other[f"eval_depth_4_{name}"] == one[f"eval_{name}"]
        assert other["eval_depth_2_loss"] != one["eval_loss"]
