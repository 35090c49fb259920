"""Which arguments of a layer have the rows of the batch: known by name, tried, or refused in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from architectures.tiny import build_tiny
from conftest import batch_for, build, layers_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_rates
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.injection.rows.arguments import Batched, Call
from hf_layerdrop.injection.rows.refusal import check_rows
from hf_layerdrop.injection.rows.trial import try_arguments

ROWS, TOKENS, WIDTH = 4, 4, 8  # as many rows as tokens, so that no shape tells them apart
KEPT = torch.tensor([0, 2])


@dataclass
class Pair:
    """Arguments within a dataclass."""

    table: torch.Tensor
    scale: float = 1.0


class Layer(nn.Module):
    """A layer whose argument is used in the way that a test names."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden_states: torch.Tensor, extra: Any = None, **kwargs: Any) -> torch.Tensor:
        return self.dropout(hidden_states + USES[self.way](hidden_states, extra))


def across(states: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
    return states.mean(0, keepdim=True) + extra


USES = {
    "a row each": lambda states, extra: extra[:, :, None] * states,
    "a token each": lambda states, extra: extra[None] @ states,
    "a value for all": lambda states, extra: extra * states,
    "rows in the middle": lambda states, extra: extra.sum(0)[:, None] * states,
    "a block for each row": lambda states, extra: extra.view(len(states), -1, WIDTH).sum(1, keepdim=True) + states,
    "in a dataclass": lambda states, extra: extra.table[:, :, None] * states * extra.scale,
    "in a dict of lists": lambda states, extra: extra["one"][0][:, :, None] * states,
    "across rows": across,
}
EXTRAS = {
    "a row each": (torch.ones(ROWS, TOKENS), 0),
    "a token each": (torch.ones(TOKENS, TOKENS), None),
    "a value for all": (torch.ones(WIDTH), None),
    "rows in the middle": (torch.ones(3, ROWS, WIDTH), 1),
    "a block for each row": (torch.ones(3 * ROWS, WIDTH), 0),
    "in a dataclass": (Pair(torch.ones(ROWS, TOKENS)), 0),
    "in a dict of lists": ({"one": [torch.ones(ROWS, TOKENS)]}, 0),
}


def tried(way: str, extra: Any) -> tuple[Call, Batched]:
    layer = Layer(way).train()
    states = torch.zeros(ROWS, TOKENS, WIDTH)  # rows alike, and an argument that is the same for all rows
    call, batched = Call.of(layer, (states,), {"extra": extra}), Batched()
    batched.learn(try_arguments(layer, layer, call, batched.unknown(call, ROWS), ROWS))
    assert layer.training
    assert layer.dropout.training
    assert not batched.unknown(call, ROWS)
    return call, batched


@pytest.mark.parametrize("way", EXTRAS)
def test_a_trial_tells_what_an_argument_is_whatever_its_values_and_its_shape(way: str) -> None:
    extra, along = EXTRAS[way]
    state = torch.get_rng_state()
    call, batched = tried(way, extra)
    assert torch.equal(torch.get_rng_state(), state)
    cut = batched.cut(Layer(way), call, ROWS, KEPT.to)
    found = cut.kwargs["extra"]
    tensor = found.table if isinstance(found, Pair) else found["one"][0] if isinstance(found, dict) else found
    whole = extra.table if isinstance(extra, Pair) else extra["one"][0] if isinstance(extra, dict) else extra
    expected = list(whole.shape)
    if along is not None:
        expected[along] = expected[along] // ROWS * len(KEPT)
    assert list(tensor.shape) == expected
    assert cut.args[0].shape == (len(KEPT), TOKENS, WIDTH)


def test_an_argument_of_another_size_than_was_tried_is_refused() -> None:
    call, batched = tried("rows in the middle", torch.ones(3, ROWS, WIDTH))
    other = Call.of(Layer("rows in the middle"), call.args, {"extra": torch.ones(3, ROWS + 1, WIDTH)})
    with pytest.raises(UnsupportedModelError, match=r"extra is of shape \(3, 5, 8\) beside 4 rows"):
        batched.cut(Layer("rows in the middle"), other, ROWS, KEPT.to)


def test_a_layer_that_mixes_rows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"its extra of shape \(4, 4, 8\) cannot be cut to rows"):
        tried("across rows", torch.ones(ROWS, TOKENS, WIDTH))


def test_nothing_is_tried_on_weights_that_ranks_would_have_to_gather_together() -> None:
    layer = Layer("a row each")
    layer.weight = nn.Parameter(torch.zeros(1))
    layer.weight.ds_id = 0  # what DeepSpeed puts on weights that it shards
    call = Call.of(layer, (torch.zeros(ROWS, TOKENS, WIDTH),), {"extra": torch.ones(ROWS, TOKENS)})
    with pytest.raises(UnsupportedModelError, match="is not tried on weights that are sharded"):
        try_arguments(layer, layer, call, Batched().unknown(call, ROWS), ROWS)


def test_what_cannot_be_looked_into_is_refused_and_a_cache_is_left_out() -> None:
    mask = create_block_mask(lambda row, head, one, other: one >= other, ROWS, None, 128, 128, device="cpu")
    layer = Layer("a row each")
    states = torch.zeros(ROWS, TOKENS, WIDTH)
    with pytest.raises(UnsupportedModelError, match="its extra is a BlockMask"):
        Batched().cut(layer, Call.of(layer, (states,), {"extra": mask}), ROWS, KEPT.to)
    assert Batched().cut(layer, Call.of(layer, (states, DynamicCache()), {}), ROWS, KEPT.to).args[1] is None


@pytest.mark.parametrize(
    ("name", "shape", "known"),
    [
        ("attention_mask", (ROWS, 1, TOKENS, TOKENS), True),
        ("attention_mask", (1, 1, TOKENS, TOKENS), True),
        ("attention_mask", (ROWS, 9), True),
        ("attention_mask", (TOKENS, TOKENS), False),
        ("attention_mask", (2 * ROWS, 1, TOKENS, TOKENS), False),
        ("position_ids", (ROWS, TOKENS), True),
        ("position_ids", (3, ROWS, TOKENS), False),
        ("encoder_hidden_states", (ROWS, 9, WIDTH), True),
        ("position_embeddings", (TOKENS, WIDTH), True),
        ("any", (ROWS, 9), False),
        ("any", (1, 9), True),
    ],
)
def test_the_names_that_are_known_are_not_tried(name: str, shape: tuple[int, ...], known: bool) -> None:
    call = Call({"hidden_states": torch.zeros(ROWS, TOKENS, WIDTH), name: torch.zeros(shape)}, 1, "hidden_states")
    assert (not Batched().unknown(call, ROWS)) == known


# --- models -------------------------------------------------------------------------------------------------------


def by_row(model: nn.Module) -> nn.Module:
    return inject_layerdrop(model, LayerDropConfig(0.5, granularity="row")).train()


def test_layers_that_normalise_over_the_batch_are_refused_before_anything_is_changed() -> None:
    model = build_tiny("wav2vec2-conformer").model
    kinds = [type(part) for part in model.modules()]
    with pytest.raises(UnsupportedModelError, match="normalises over the rows of a batch"):
        by_row(model)
    assert [type(part) for part in model.modules()] == kinds


def test_such_layers_are_refused_too_when_their_rate_is_raised_from_0() -> None:
    tiny = build_tiny("wav2vec2-conformer")
    model = inject_layerdrop(tiny.model, LayerDropConfig(0.0, granularity="row")).train()
    model(**tiny.batch)
    set_rates(model, 0.5)
    with pytest.raises(UnsupportedModelError, match="normalises over the rows of a batch"):
        model(**tiny.batch)


def test_layers_that_borrow_from_others_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="later layers borrow keys and values"):
        check_rows(layers_of(build("BertModel"))["encoder"], lent=(0,))


def test_the_loss_of_a_router_which_takes_all_rows_is_refused_in_the_first_forward() -> None:
    tiny = build_tiny("mixtral")
    model = by_row(tiny.model)
    model(**tiny.batch)
    with pytest.raises(UnsupportedModelError, match="router_logits are recorded"):
        model(**tiny.batch, output_router_logits=True)


def test_layers_that_see_tokens_of_all_rows_in_one_line_are_refused() -> None:
    class Flat(nn.Module):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(hidden_states.flatten(0, 1), *args, **kwargs)  # type: ignore[misc]

    model = build("BertModel")
    encoder = model.encoder
    encoder.__class__ = type("BertEncoder", (Flat, type(encoder)), {})
    by_row(model)
    with pytest.raises(UnsupportedModelError, match=r"of shape \(27, 16\), in which rows are not apart"):
        model(**batch_for("BertModel"))
