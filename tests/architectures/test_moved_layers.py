"""Whether a layer computes with its own number is found by running it, and a cut that would change it is refused."""

from __future__ import annotations

import copy
import logging
import random

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from architectures.tiny import build_tiny
from hf_layerdrop import load_checkpoint, prune_layers, sub_network
from hf_layerdrop.architectures import moved_layers
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import UnsupportedModelError


def imagegpt(**settings: object) -> PreTrainedModel:
    config = transformers.ImageGPTConfig(n_embd=16, n_layer=6, n_head=2, vocab_size=40, n_positions=16, **settings)
    return transformers.ImageGPTModel(config)


class NumberedConfig(PreTrainedConfig):
    model_type = "numbered"

    def __init__(self, num_hidden_layers: int = 6, use: str = "scale", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_hidden_layers = num_hidden_layers
        self.use = use
        self.vocab_size, self.hidden_size = 10, 4


class NumberedLayer(nn.Module):
    """Uses its number in one of several ways."""

    def __init__(self, config: NumberedConfig, layer_idx: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layer_idx, self.use = layer_idx, config.use

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.first(hidden_states)
        if self.use == "scale":
            return hidden_states + x / (1 + self.layer_idx)
        if self.use == "parity" and self.layer_idx % 2:
            x = x.relu()
        if self.use == "tensor":
            x = x + torch.tensor(0.1 * self.layer_idx)
        if self.use == "which" and self.layer_idx > 2:
            x = self.second(hidden_states)
        if self.use == "data":
            x = x * self.layer_idx if bool((x > 0).all()) else x
        return hidden_states + x


class NumberedModel(PreTrainedModel):
    config_class = NumberedConfig
    main_input_name = "input_ids"

    def __init__(self, config: NumberedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 4)
        self.layers = nn.ModuleList([NumberedLayer(config, i) for i in range(config.num_hidden_layers)])
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = self.embed(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


def test_a_layer_that_scales_by_its_number_is_not_moved(tmp_path) -> None:
    model = imagegpt(scale_attn_by_inverse_layer_idx=True)
    model.save_pretrained(tmp_path)
    for cut in (
        lambda: prune_layers(model, [0, 2, 4]),
        lambda: sub_network(model, [0, 2, 4]).__enter__(),
        lambda: load_checkpoint(tmp_path, keep_layers=[0, 2, 4]),
    ):
        with pytest.raises(
            UnsupportedModelError, match=r"layer 2 computes with its own number.*3\.0\) and then .*2\.0\)"
        ):
            cut()
    assert depths_of(model) == {"layers": 6}
    prune_layers(model, [0, 1, 2])  # none of these is moved
    assert depths_of(model) == {"layers": 3}


def test_without_that_setting_it_is() -> None:
    assert depths_of(prune_layers(imagegpt(), [0, 2, 4])) == {"layers": 3}


@pytest.mark.parametrize(
    ("use", "refused", "let_pass"),
    [
        ("scale", [0, 2], [0, 1]),
        ("parity", [0, 1, 3], [0, 3, 4]),
        ("tensor", [1, 2], [0, 1]),
        ("which", [0, 5], [0, 2]),
        ("none", None, [0, 5]),
    ],
)
def test_any_use_of_the_number_is_found_in_a_model_that_nobody_knows(use, refused, let_pass) -> None:
    model = NumberedModel(NumberedConfig(use=use))
    if refused:
        with pytest.raises(UnsupportedModelError, match="computes with its own number"):
            prune_layers(model, refused)
    assert depths_of(prune_layers(model, let_pass)) == {"layers": len(let_pass)}


def test_what_cannot_be_tried_is_warned_of_once(caplog) -> None:
    moved_layers._warned.clear()
    model = NumberedModel(NumberedConfig(use="data"))
    with caplog.at_level(logging.WARNING):
        prune_layers(copy.deepcopy(model), [0, 2])
        prune_layers(copy.deepcopy(model), [0, 3])
    said = [record.getMessage() for record in caplog.records if "its own number" in record.getMessage()]
    assert len(said) == 1
    assert "numbered" in said[0]


def test_no_random_stream_is_moved() -> None:
    model = NumberedModel(NumberedConfig(use="scale", num_hidden_layers=8))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with pytest.raises(UnsupportedModelError):
        prune_layers(model, [0, 7])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(old, new) for old, new in zip(np.random.get_state(), before[2], strict=True))


@pytest.mark.parametrize(
    "model_type", ["bert", "llama", "bart", "t5", "whisper", "mixtral", "mamba", "qwen3", "gpt2", "longformer"]
)
def test_a_number_that_is_a_place_in_a_cache_alone_costs_nothing(model_type, monkeypatch) -> None:
    monkeypatch.setattr(moved_layers, "_tried", lambda *_: pytest.fail("layers were run"))
    model = build_tiny(model_type).model
    prune_layers(model, {name: [1, 3] for name in depths_of(model)})


@pytest.mark.parametrize("model_type", ["imagegpt", "rwkv", "phi4_multimodal"])
def test_where_the_source_does_not_tell_the_layers_are_run(model_type, caplog) -> None:
    model = build_tiny(model_type).model
    with caplog.at_level(logging.WARNING):
        prune_layers(model, {name: [0, 2] for name in depths_of(model)})
    assert "could not be tried" not in caplog.text


def test_what_was_found_is_remembered(monkeypatch) -> None:
    model = NumberedModel(NumberedConfig(use="none", num_hidden_layers=24))
    prune_layers(copy.deepcopy(model), "::2")
    monkeypatch.setattr(moved_layers, "_tried", lambda *_: pytest.fail("layers were run again"))
    prune_layers(copy.deepcopy(model), "::2")


def test_weights_that_are_divided_by_the_numbers_of_layers_are_not_moved() -> None:
    config = transformers.RwkvConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=6, context_length=16, rescale_every=2
    )
    model = transformers.RwkvModel(config).eval()
    pruned = prune_layers(copy.deepcopy(model), [0, 2, 4]).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        model(input_ids=ids)  # divides them
        pruned(input_ids=ids)
    with pytest.raises(UnsupportedModelError, match="cut it as it is loaded"):
        prune_layers(model, [0, 2, 4])
    assert depths_of(prune_layers(model, [0, 1])) == {"layers": 2}
