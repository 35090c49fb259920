"""bitsandbytes: layers chosen while loading in 8 bit, and adapters trained with LayerDrop on an 8-bit model."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from conftest import assert_same_tensors, batch_for, build
from hf_layerdrop import AutoLayerDropModelForSequenceClassification, prune_layers
from integrations import needed

bitsandbytes = needed("bitsandbytes")

HEAD = "BertForSequenceClassification"
KEPT = [1, 3]


@pytest.fixture
def folder(tmp_path):
    build(HEAD, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def load(folder, **kwargs):
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    return AutoLayerDropModelForSequenceClassification.from_pretrained(
        folder, quantization_config=quantization, device_map="cpu", **kwargs
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch_for(HEAD)).logits


def test_keep_layers_of_an_8_bit_model_equal_a_cut(folder, tmp_path):
    model = load(folder)
    assert model.bert.encoder.layer[0].attention.self.query.weight.dtype == torch.int8
    whole = logits(model)
    model.save_pretrained(tmp_path / "quantized")
    prune_layers(model, KEPT)
    expected = logits(model)
    assert not torch.allclose(expected, whole, atol=1e-2)
    model.save_pretrained(tmp_path / "shallow")

    from_floats = load(folder, keep_layers=KEPT)
    assert_same_tensors(from_floats.state_dict(), model.state_dict())
    assert torch.equal(logits(from_floats), expected)
    from_8_bit = AutoLayerDropModelForSequenceClassification.from_pretrained(
        tmp_path / "quantized", device_map="cpu", keep_layers=KEPT
    )
    assert torch.equal(logits(from_8_bit), expected)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "shallow", device_map="cpu")
    assert torch.equal(logits(plain), expected)


def test_adapters_on_an_8_bit_model_train_with_layerdrop(folder):
    peft = needed("peft")
    model = peft.prepare_model_for_kbit_training(load(folder, layerdrop=(0, 1, 0, 1)))
    adapters = peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    model = peft.get_peft_model(model, adapters).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora" in name}
    for _ in range(3):
        model(**batch_for(HEAD), labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name.partition("layer.")[2][0] for name, weight in model.named_parameters()
             if name in before and not torch.equal(weight, before[name])}  # fmt: skip
    assert moved == {"0", "2"}
