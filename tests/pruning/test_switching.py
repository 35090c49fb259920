"""Entering a sub-network again costs next to nothing, and what is remembered never stands for another model."""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from conftest import DEPTH, batch_for, build, output_of
from hf_layerdrop.errors import KeepLayersError, LayerDropStateError
from hf_layerdrop.injection.inject import inject_layerdrop, remove_layerdrop
from hf_layerdrop.pruning.prune import prune_layers, sub_network

KEPT = {"BertForSequenceClassification": 2, "RobertaForMaskedLM": 2, "BartForConditionalGeneration": 2}
KEPT |= {"BartForCausalLM": 2}


def output(model: PreTrainedModel, head: str) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model, batch_for(head))


def cut_output(model: PreTrainedModel, head: str, keep_layers: object) -> torch.Tensor:
    """Return what the model cut for good gives: nothing is remembered of a copy."""
    return output(prune_layers(copy.deepcopy(model), keep_layers).eval(), head)


def test_to_switch_takes_less_than_a_millisecond(head: str) -> None:
    model, seconds = build(head, **({} if head.startswith("Bart") else {"num_hidden_layers": 12})), []
    for turn in range(60):
        start = time.thread_time()
        with sub_network(model, 2 + turn % 2):
            pass
        seconds.append(time.thread_time() - start)
    assert min(seconds[:2]) > 2 * sorted(seconds)[30]  # the first looks, the others do not
    assert sorted(seconds[10:])[10] < 1e-3


def replace_a_layer(model: PreTrainedModel) -> None:
    layers = model.bert.encoder.layer
    layers[3] = copy.deepcopy(layers[0])


def replace_the_list(model: PreTrainedModel) -> None:
    model.bert.encoder.layer = torch.nn.ModuleList(reversed(model.bert.encoder.layer))


def change_the_activation(model: PreTrainedModel) -> None:
    model.config.hidden_act = "relu"  # the model has its own by now: only what is rebuilt from the config differs


def cut_it(model: PreTrainedModel) -> None:
    prune_layers(model, [0, 1, 3])


def inject_it(model: PreTrainedModel) -> None:
    inject_layerdrop(model, 1.0)


def inject_twice(model: PreTrainedModel) -> None:
    inject_layerdrop(model, 1.0)
    with sub_network(model, 2):
        pass
    inject_layerdrop(model, 1.0)


def inject_and_remove(model: PreTrainedModel) -> None:
    inject_twice(model)
    remove_layerdrop(model)


CHANGES = [replace_a_layer, replace_the_list, change_the_activation, cut_it, inject_it, inject_twice, inject_and_remove]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_was_changed_is_looked_at_again(change: Callable[[PreTrainedModel], None]) -> None:
    head = "BertForSequenceClassification"
    model = build(head)
    for kept in (2, [1, 2]):
        with sub_network(model, kept):
            pass
    change(model)
    expected = cut_output(model, head, [0, 2])
    with sub_network(model, [0, 2]):
        model.train()  # where LayerDrop would drop all, if the block had not switched it off
        assert torch.equal(output(model, head), expected)
        assert model.config.num_hidden_layers == 2
    model.eval()
    assert not torch.equal(output(model, head), expected)


def test_a_config_that_came_to_be_shared_is_not_cut_for_the_other_model() -> None:
    model = build("BertForSequenceClassification")
    with sub_network(model, 2):
        pass
    other = type(model)(model.config)
    with sub_network(model, 2):
        assert other.config.num_hidden_layers == DEPTH


def test_switching_back_and_forth_is_each_time_the_cut_model(head: str) -> None:
    model = build(head)
    expected = {depth: cut_output(model, head, depth) for depth in (1, 2, 3, 4)}
    for depth in (2, 3, 2, 1, 4, 3, 1):
        with sub_network(model, depth):
            assert torch.equal(output(model, head), expected[depth])
    assert torch.equal(output(model, head), expected[4])


def test_blocks_inside_of_blocks_count_the_layers_of_the_outer_one() -> None:
    model, head = build("BertForSequenceClassification"), "BertForSequenceClassification"
    expected = cut_output(model, head, [1, 3])
    for _ in range(3):
        with sub_network(model, [0, 1, 3]), sub_network(model, [1, 2]):
            assert torch.equal(output(model, head), expected)
        with pytest.raises(KeepLayersError, match="3 layers"), sub_network(model, [0, 1, 3]), sub_network(model, [3]):
            pass


def test_an_injected_model_is_not_entered_twice_also_where_the_outer_block_keeps_all() -> None:
    model = inject_layerdrop(build("BertForSequenceClassification"), 0.5)
    with sub_network(model, 2):
        pass
    with sub_network(model, "all"), pytest.raises(LayerDropStateError, match="after the block"), sub_network(model, 2):
        pass


def test_what_is_remembered_does_not_keep_the_model() -> None:
    model = build("BertForSequenceClassification")
    with sub_network(model, 2):
        pass
    gone = weakref.ref(model), weakref.ref(model.bert.encoder.layer[0])
    del model
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
