"""A module's class is changed in place: its name and pickle stay, and it can be taken back."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.class_swap import adopt, adopted_class, release


class Loud:
    """A mixin whose work shows."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) + 100


class Louder(Loud):
    """Another."""


def test_the_class_keeps_its_names_and_is_the_same_object_each_time():
    adopted = adopted_class(nn.Linear, Loud)
    assert adopted is adopted_class(nn.Linear, Loud)
    assert adopted is not adopted_class(nn.Linear, Louder)
    assert issubclass(adopted, nn.Linear)
    assert issubclass(adopted, Loud)
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(adopted, name) for name in names] == [getattr(nn.Linear, name) for name in names]


def test_adopt_changes_what_a_call_does_and_release_undoes_it():
    layer, inputs = nn.Linear(3, 2), torch.ones(1, 3)
    weights, expected, attributes = dict(layer.state_dict()), layer(inputs), set(vars(layer))
    adopt(layer, Loud)
    assert torch.equal(layer(inputs), expected + 100)
    assert all(
        weights[name] is not None and torch.equal(value, weights[name]) for name, value in layer.state_dict().items()
    )
    release(layer, Loud)
    assert type(layer) is nn.Linear
    assert set(vars(layer)) == attributes
    assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_adopted_too_and_can_be_released(copied):
    layer, inputs = nn.Linear(3, 2), torch.ones(1, 3)
    plain = layer(inputs)
    adopt(layer, Loud)
    again = copied(layer)
    assert type(again) is type(layer)
    assert again is not layer
    assert torch.equal(again(inputs), plain + 100)
    release(again, Loud)
    assert type(again) is nn.Linear
    assert torch.equal(again(inputs), plain)
    assert torch.equal(layer(inputs), plain + 100)


def test_a_class_that_was_changed_since_is_not_taken_back():
    layer = nn.Linear(3, 2)
    with pytest.raises(LayerDropStateError, match="Linear"):
        release(layer, Loud)
    adopt(layer, Loud)
    layer.__class__ = type("FSDPLinear", (type(layer),), {})
    with pytest.raises(LayerDropStateError, match="before the model is wrapped"):
        release(layer, Loud)
    assert type(layer).__name__ == "FSDPLinear"
