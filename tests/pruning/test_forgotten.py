"""What is remembered to switch quickly holds no layer that is cut away for good."""

from __future__ import annotations

import gc
import weakref

from conftest import build
from hf_layerdrop import prune_layers, sub_network
from hf_layerdrop.architectures.stacks import find_stacks


def test_layers_that_are_cut_away_are_freed_after_a_sub_network() -> None:
    model = build("BertForSequenceClassification")
    (stack,) = find_stacks(model).values()
    with sub_network(model, 2):
        pass
    layer = weakref.ref(stack.layers(model)[1])
    prune_layers(model, [0])
    gc.collect()
    assert layer() is None
