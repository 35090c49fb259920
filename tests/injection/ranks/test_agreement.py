"""What a rank asks the others, and how often: once for all stacks, without looking at all weights in each forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.testing._internal.distributed.fake_pg  # registers a backend of several ranks that one process can have
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import batch_for, build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_rates
from hf_layerdrop.injection.inject import layerdrop_state
from hf_layerdrop.injection.ranks.ddp import leave_ranks
from hf_layerdrop.injection.rates import scale_rates

BART = "BartForConditionalGeneration"
RATES = [{"encoder": 0.0, "decoder": 0.5}, {"encoder": 0.5, "decoder": 0.0}, {"encoder": 0.5, "decoder": 0.5}]


class Echo(distributed.Store):
    """Where rank 1, which is this process, reads that rank 0 said the same.

    Attributes:
        said: What this process said of LayerDrop, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def set(self, key: str, value: bytes) -> None:
        if "hf_layerdrop" in key:
            self.said.append(value.decode())

    def wait(self, keys: list[str], timeout: Any = None) -> None:
        pass

    def get(self, key: str) -> bytes:
        return self.said[-1].encode()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A group of two, of which this process is the second."""
    store = Echo()
    distributed.init_process_group("fake", store=store, rank=1, world_size=2)
    yield store
    leave_ranks()


def injected(rate: Any, head: str = BART, **settings: Any) -> nn.Module:
    model = build(head).train()
    inject_layerdrop(model, LayerDropConfig(rate, seed=1, **settings))
    return model


def without_encoder(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    ids = batch["input_ids"]
    return {"decoder_input_ids": ids, "encoder_outputs": (torch.ones(*ids.shape, 16),)}


@pytest.mark.parametrize("execution", ["skip", "mask"])
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_whichever_stack_runs_first_says_the_same_for_all_and_once(
    echo: Echo, rates: dict[str, float], execution: str
) -> None:
    whole, parts = (DistributedDataParallel(injected(rates, execution=execution)) for _ in range(2))
    batch = batch_for(BART)
    for _ in range(2):
        whole(**batch)
    assert len(echo.said) == 1
    assert all(f"{stack}: {execution}, bernoulli" in echo.said[0] for stack in rates)
    for given in (without_encoder(batch), batch):
        parts(**given)
    assert echo.said == [echo.said[0]] * 2


@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_a_model_at_rate_0_is_asked_too_since_the_others_may_have_another_rate(echo: Echo, execution: str) -> None:
    wrapped = DistributedDataParallel(injected(0.0, execution=execution))
    wrapped.eval()(**batch_for(BART))
    assert not echo.said
    wrapped.train()(**batch_for(BART))
    assert "rates [0.0, 0.0, 0.0, 0.0]" in echo.said[0]


def test_it_is_asked_again_when_rates_or_seed_change_and_not_when_a_schedule_scales_them(echo: Echo) -> None:
    model = injected({"encoder": 0.0, "decoder": 0.5})
    wrapped = DistributedDataParallel(model)
    changes = [
        lambda: None,
        lambda: set_rates(model, {"encoder": 0.2}),
        lambda: scale_rates(model, 0.5),
        lambda: layerdrop_state(model).set_seed(3),
        lambda: layerdrop_state(model).load_state_dict(layerdrop_state(model).state_dict()),
    ]
    asked = []
    for change in changes:
        change()
        before = len(echo.said)
        wrapped(**batch_for(BART))
        asked.append(len(echo.said) - before)
    assert asked == [1, 1, 0, 1, 1]
    assert len(set(echo.said)) == len(echo.said)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_several_ranks_that_train_models_of_their_own_look_at_the_weights_once_and_ask_nothing(
    echo: Echo, rate: float
) -> None:
    model, looks = injected(rate), []
    for owner in (model.model.encoder, model.model.decoder):
        look = owner.named_modules  # through which all modules and parameters are found

        def counted(*args: Any, look: Any = look, **kwargs: Any) -> Any:
            looks.append(look)
            return look(*args, **kwargs)

        owner.__dict__["named_modules"] = counted
    model(**batch_for(BART))
    first = len(looks)
    for _ in range(3):
        model(**batch_for(BART))
    assert len(looks) == first > 0
    assert not echo.said


def test_what_comes_to_be_shared_after_its_first_forwards_is_asked_then() -> None:
    model = injected(0.5)
    model(**batch_for(BART))  # before the ranks have met
    store = Echo()
    distributed.init_process_group("fake", store=store, rank=1, world_size=2)
    model(**batch_for(BART))
    assert not store.said
    for weight in model.parameters():  # as DeepSpeed marks those that ZeRO-3 shards
        weight.ds_id = 0
    model(**batch_for(BART))
    model(**batch_for(BART))
    leave_ranks()
    assert len(store.said) == 1


class Towers(nn.Module):
    """Two injected models beside each other, of which a batch may need one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.passage = injected(0.5, "BertModel"), injected(0.25, "BertModel")

    def forward(self, names: tuple[str, ...]) -> torch.Tensor:
        return sum(getattr(self, name)(**batch_for("BertModel")).last_hidden_state.sum() for name in names)


@pytest.mark.parametrize("first", [("query",), ("passage",), ("passage", "query")], ids=str)
def test_whichever_of_several_models_runs_first_says_the_same_for_all_and_once(
    echo: Echo, first: tuple[str, ...]
) -> None:
    wrapped = DistributedDataParallel(Towers())
    for names in (first, ("query", "passage"), ("query",)):
        wrapped(names)
    (said,) = echo.said
    assert "query.encoder: skip, bernoulli, rates [0.5" in said
    assert "passage.encoder: skip, bernoulli, rates [0.25" in said
    set_rates(wrapped, {"passage.encoder": 0.1})
    for names in (("query",), ("passage",)):
        wrapped(names)
    assert len(echo.said) == 2
    assert "rates [0.1" in echo.said[1]
