"""A model that shares its config with another is changed alone; what it is a part of goes on sharing it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import EncoderDecoderModel, PreTrainedModel

from conftest import batch_for, build, output_of, tiny_config
from hf_layerdrop import inject_layerdrop, prune_heads, prune_layers, remove_layerdrop, set_rates, sub_network
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.pruning.prune import Cutter
from searching import search
from structure_models import CONFIGS, shaken

HEADS = ["BertForSequenceClassification", "BartForConditionalGeneration", "ViTModel"]


def twins(head: str, count: int = 2) -> list[PreTrainedModel]:
    """Build models from one config object, which the caller still has."""
    config = CONFIGS[head]() if head in CONFIGS else tiny_config(head, attn_implementation="eager")
    return [shaken(getattr(transformers, head)(config)).eval() for _ in range(count)]


def halves(model: PreTrainedModel) -> dict[str, list[int]]:
    return {name: [0, 3] for name in depths_of(model)}


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "inject": lambda model: inject_layerdrop(model, 0.5),
    "inject and set": lambda model: set_rates(inject_layerdrop(model, 0.5), 0.2),
    "inject and remove": lambda model: remove_layerdrop(inject_layerdrop(model, 0.5)),
    "cut": lambda model: prune_layers(model, halves(model)),
    "cut heads": lambda model: prune_heads(model, {layer: [0, 1] for layer in range(4)}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("head", HEADS)
def test_a_model_that_shares_its_config_is_changed_alone(head: str, change: str, tmp_path: Path) -> None:
    if change == "cut heads" and head != "ViTModel":
        pytest.skip("no config of it has the width of a head")
    changed, other = twins(head)
    shared, before = other.config, copy.deepcopy(other.config.to_dict())
    CHANGES[change](changed)
    assert other.config is shared
    assert shared.to_dict() == before
    assert all(value is not shared for part in changed.modules() for value in vars(part).values())
    if change == "inject and remove":
        assert changed.config.to_dict() == before
    other.save_pretrained(tmp_path)
    again = type(other).from_pretrained(tmp_path, attn_implementation="eager")
    assert depths_of(again) == depths_of(other)


def test_a_model_without_twin_keeps_its_config_and_what_holds_it_sees_the_change() -> None:
    model = build("BertForSequenceClassification")
    config = model.config
    remove_layerdrop(inject_layerdrop(model, 0.5))
    prune_layers(model.bert, [0, 3])  # a part of a model is cut with the model's config
    assert model.config is config
    assert config.num_hidden_layers == 2
    whole = EncoderDecoderModel(encoder=build("BertModel"), decoder=build("BertLMHeadModel", add_cross_attention=True))
    prune_layers(whole.encoder, [0, 3])
    assert whole.config.encoder.num_hidden_layers == 2
    assert whole.config.encoder is whole.encoder.config


def test_a_part_of_a_module_of_twins_is_cut_alone() -> None:
    towers = nn.ModuleList(twins("BertForSequenceClassification"))
    prune_layers(towers[0], [0, 3])
    assert [tower.config.num_hidden_layers for tower in towers] == [2, 4]


def test_threads_cut_models_of_one_config_at_once() -> None:
    head = "BertForSequenceClassification"
    models, batch = twins(head, 8), batch_for(head)
    cuts = []
    for model in models:
        pruned = prune_layers(copy.deepcopy(model), [0, 3])
        cuts.append(output_of(pruned, batch))

    def work(place: int) -> None:
        for _ in range(5):
            with sub_network(models[place], [0, 3]):
                assert models[place].config.num_hidden_layers == 2
                assert torch.equal(output_of(models[place], batch), cuts[place])
            assert models[place].config.num_hidden_layers == 4

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, place) for place in range(8)]:
            done.result()


def test_a_twin_and_a_whole_that_are_frozen_are_seen() -> None:
    changed, other = twins("BertForSequenceClassification")
    whole = build("BertForSequenceClassification")
    gc.freeze()
    try:
        prune_layers(changed, [0, 3])
        prune_layers(whole.bert, [0, 3])
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert (changed.config.num_hidden_layers, other.config.num_hidden_layers) == (2, 4)
    assert whole.config.num_hidden_layers == 2


def test_a_block_takes_no_longer_where_a_script_still_has_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise AssertionError("all objects were looked at")

    model = build("BertModel")
    monkeypatch.setitem(globals(), "CONFIG", model.config)  # as a variable of a script or a notebook
    monkeypatch.setattr(gc, "get_referrers", fails)
    with sub_network(model, [0, 3]):
        assert model.config.num_hidden_layers == 2


def test_what_is_remembered_of_a_model_makes_nothing_search_for_who_holds_its_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: object) -> None:
        raise AssertionError("all objects were looked at")

    monkeypatch.setattr(gc, "get_referrers", fails)
    model = build("BertForSequenceClassification")
    cutters = [Cutter(model) for _ in range(2)]
    for _ in range(2):
        with sub_network(model, [0, 3]):
            assert len(cutters) == 2
        search(model)
    prune_layers(model, [0, 3])
    assert model.config.num_hidden_layers == 2
