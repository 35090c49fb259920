"""An interrupt at any line of ours leaves a model as it was: whole, or cut for good, and nothing between."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import hf_layerdrop
from conftest import assert_same_tensors, batch_for, build, output_of
from hf_layerdrop import (
    LayerDropBertForSequenceClassification,
    LayerDropConfig,
    evaluate_depths,
    inject_layerdrop,
    layerdrop_state,
    prune_heads,
    prune_layers,
    remove_layerdrop,
    set_rates,
    set_step,
    structure_sub_network,
    sub_network,
)
from hf_layerdrop.architectures.expressible import BUILDING
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.open_blocks import turn_of_thread
from hf_layerdrop.pruning.plan import forget
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.samplers.keep_layers import parse_keep_layers
from structure_models import new

# Garbage may be collected at any line, and the end of a state be what is interrupted.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PACKAGE = str(Path(hf_layerdrop.__file__).parent)
OURS = str(Path(PACKAGE, "pruning"))
THAT_CHANGE = tuple(str(Path(PACKAGE, folder)) for folder in ("injection", "pruning"))  # and do not only look
KEPT = {"BertModel": [0, 3], "BartModel": {"encoder": [0, 3], "decoder": [1, 2]}}


def others_go_on() -> bool:
    """Tell whether another thread gets its turn, and may build models."""
    done = []

    def go_on() -> None:
        with turn_of_thread(nn.Linear(1, 1)), BUILDING:
            done.append(True)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(20)
    return bool(done)


@pytest.fixture(autouse=True)
def no_lock_is_left() -> Iterator[None]:
    """After an interrupt at any line, others go on."""
    yield
    assert others_go_on()


def interrupted_at(line: int, work: Callable[[], Any], ours: str | tuple[str, ...] = OURS) -> bool:
    """Do some work, interrupt it before the given line of ours that it runs, and tell whether it got so far."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(ours):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def spread_lines(work: Callable[[], Any], ours: str | tuple[str, ...], count: int) -> list[int]:
    """Return some of the lines of ours that some work runs, spread over all of it."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        seen += event == "line"
        return trace if frame.f_code.co_filename.startswith(ours) else None

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return [1 + place * (seen - 1) // (count - 1) for place in range(count)]


def test_no_interrupt_leaves_the_lock_of_turns_to_its_thread() -> None:
    """Also between the end of a ``with`` and the release of what it holds: at each line, one after the other."""

    def work() -> None:
        with turn_of_thread(nn.Linear(1, 1)):
            pass

    for line in itertools.count(1):
        if not interrupted_at(line, work, str(Path(PACKAGE, "injection", "open_blocks.py"))):
            break
        assert others_go_on(), f"after an interrupt at line {line} of those that ran"
    assert line > 20


@pytest.mark.parametrize("injected", [False, True], ids=["plain", "injected"])
@pytest.mark.parametrize("head", ["BertModel", "BartModel"])
def test_a_block_that_is_interrupted_anywhere_leaves_the_whole_model(head: str, injected: bool) -> None:
    model = build(head).eval()
    if injected:
        inject_layerdrop(model, 0.5)
    batch = batch_for(head)
    expected, config, depths = output_of(model, batch), model.config.to_dict(), depths_of(model)

    cutter = Cutter(model)
    kept = parse_keep_layers(KEPT[head], depths)

    def work() -> None:
        with cutter.sub_network(kept):
            pass

    work()  # what is remembered of the model is there from now on
    line = 0
    while interrupted_at(line := line + 3, work):
        assert depths_of(model) == depths, line
        assert model.config.to_dict() == config, line
        assert torch.equal(output_of(model, batch), expected), line
    assert line > 100
    with sub_network(model, KEPT[head]):  # no block is taken to be open
        pass


def test_a_cut_that_is_interrupted_is_whole_or_done() -> None:
    line, outcomes = 0, set()
    while True:
        line += 41
        model = build("BertModel").eval()
        if not interrupted_at(line, lambda model=model: prune_layers(model, [0, 3])):
            break
        depth = depths_of(model)["encoder"]
        assert model.config.num_hidden_layers == depth == len(model.encoder.layer), line
        outcomes.add(depth)
    assert 4 in outcomes
    assert outcomes <= {2, 4}


def facts_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return all that must not be half of one and half of the other: classes, attributes, config, state, Trainer's."""
    injected = {path: vars(part).get("_layerdrop") for path, part in model.named_modules()}
    return {
        "classes": {path: type(part) for path, part in model.named_modules()},
        "attributes": {path: sorted(vars(part)) for path, part in model.named_modules()},
        "modes": {path: part.training for path, part in model.named_modules()},
        "shapes": {name: tuple(weight.shape) for name, weight in model.named_parameters()},
        "config": model.config.to_dict(),
        "states": {path: state.state_dict() for path, state in injected.items() if state is not None},
    }


# What changes a model for good: what it needs, and what it does.
CHANGES: dict[str, tuple[object, Callable[[PreTrainedModel], object]]] = {
    "inject": (None, lambda model: inject_layerdrop(model, 0.5)),
    "inject parts": (None, lambda model: inject_layerdrop(model, LayerDropConfig(0.5, structure=("layer", "ffn")))),
    "inject again": (0.5, lambda model: inject_layerdrop(model, LayerDropConfig(0.2, execution="mask"))),
    "remove": (0.5, remove_layerdrop),
    "rates": (0.5, lambda model: set_rates(model, 0.1)),
    "cut": (0.5, lambda model: prune_layers(model, dict.fromkeys(depths_of(model), 2))),
    "cut heads": (0.5, lambda model: prune_heads(model, {layer: [0] for layer in range(4)})),
}


@pytest.mark.parametrize(
    ("head", "change"),
    [(head, change) for head in ("BertModel", "BartModel") for change in CHANGES if change != "cut heads"]
    + [("ViTModel", "cut heads")],
)
def test_a_change_that_is_interrupted_is_whole_or_not_at_all(head: str, change: str) -> None:
    before, work = CHANGES[change]

    def made() -> PreTrainedModel:
        model = (new if change == "cut heads" else build)(head).eval()
        if before is not None:
            inject_layerdrop(model, before)
        return model

    whole, done = made(), made()
    work(done)
    allowed = [facts_of(whole), facts_of(done)]
    assert allowed[0] != allowed[1]
    outcomes, model = set(), whole
    measured = made()
    for line in spread_lines(lambda: work(measured), THAT_CHANGE, 30):
        interrupted_at(line, lambda model=model: work(model), THAT_CHANGE)
        found = facts_of(model)
        assert found in allowed, line
        outcomes.add(allowed.index(found))
        if found != allowed[0]:
            model = made()
    assert 0 in outcomes


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BartForConditionalGeneration"])
def test_a_measurement_that_is_interrupted_leaves_the_model_as_it_was(head: str) -> None:
    model = build(head).train()
    inject_layerdrop(model, 0.5)
    batch = dict(batch_for(head))
    batch["labels"] = torch.tensor([0, 1, 0]) if "Classification" in head else batch["input_ids"]
    depths = [dict.fromkeys(depths_of(model), 2), "all"]

    def work() -> None:
        evaluate_depths(model, [batch], depths=depths, progress=False)

    work()
    expected, streams = facts_of(model), torch.get_rng_state()
    for line in spread_lines(work, PACKAGE, 20):
        interrupted_at(line, work, PACKAGE)
        assert facts_of(model) == expected, line
        assert torch.equal(torch.get_rng_state(), streams), line


def globals_of_building() -> list[Any]:
    """Return what transformers sets for a moment while it builds and loads."""
    filling = [getattr(nn.init, name) for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_")]
    made = torch.empty(1)
    return [PreTrainedModel.init_weights, *filling, nn.Linear.reset_parameters, made.dtype, made.device]


def test_a_load_that_is_interrupted_leaves_transformers_as_it_was(tmp_path: Path) -> None:
    head = "BertForSequenceClassification"
    build(head).save_pretrained(tmp_path)

    def work() -> None:
        forget()  # so that the model is built anew
        LayerDropBertForSequenceClassification.from_pretrained(tmp_path, keep_layers=[0, 3], layerdrop=0.5)

    work()
    before, weights = globals_of_building(), build(head).state_dict()
    for line in spread_lines(work, PACKAGE, 25):
        interrupted_at(line, work, PACKAGE)
        assert globals_of_building() == before, line
    assert_same_tensors(build(head).state_dict(), weights)
    work()


# --- Within a block --------------------------------------------------------------------------------


@contextmanager
def without_heads(model: PreTrainedModel) -> Iterator[None]:
    with structure_sub_network(model, {"head": {0: [0]}}):
        yield


BLOCKS: dict[str, Callable[[PreTrainedModel], AbstractContextManager[Any]]] = {
    "sub_network": lambda model: sub_network(model, [0, 3]),
    "structure_sub_network": without_heads,
}
HOLDERS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    "the model": lambda model: model,
    "a part of it": lambda model: model.bert,
    "a module around it": lambda model: nn.ModuleList([model]),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "inject parts"])
def test_a_model_within_a_block_is_not_changed_for_good(change: str, block: str, holder: str) -> None:
    """The end of the block would undo a part of it in silence."""
    before, work = CHANGES[change]
    model = build("BertForSequenceClassification").eval()
    if before is not None:
        inject_layerdrop(model, LayerDropConfig(before, structure=("layer", "head")))
    batch = batch_for("BertForSequenceClassification")
    expected, output = facts_of(model), output_of(model, batch)
    given = HOLDERS[holder](model)
    needs_the_model = ("cut heads",) if holder == "a module around it" else ("inject again", "remove", "rates")
    if holder != "the model" and change in needs_the_model:
        pytest.skip("what it needs is in another module")
    with BLOCKS[block](model), pytest.raises(LayerDropStateError, match="after the block"):
        work(given)
    assert facts_of(model) == expected
    assert torch.equal(output_of(model, batch), output)


def test_steps_schedules_and_saved_states_are_right_within_a_block() -> None:
    model, alone = build("BertModel"), build("BertModel")
    for one in (model, alone):
        inject_layerdrop(one, 0.5)
    with sub_network(model, [0, 3]):
        set_step(model, 7, 1)
        layerdrop_state(model).scale_rates(0.5)
    set_step(alone, 7, 1)
    layerdrop_state(alone).scale_rates(0.5)
    assert facts_of(model) == facts_of(alone)


def test_a_model_within_a_block_is_not_cut_for_good() -> None:
    """The end of the block would undo it in silence."""
    model = build("BertModel")
    with sub_network(model, [0, 3]), pytest.raises(LayerDropStateError, match="after the block"):
        prune_layers(model, 1)
    assert depths_of(model) == {"encoder": 4}
    prune_layers(model, 1)
    assert depths_of(model) == {"encoder": 1}


def test_blocks_that_are_closed_in_another_order_leave_the_whole_model() -> None:
    model = build("BertModel").eval()
    batch = batch_for("BertModel")
    expected, config = output_of(model, batch), model.config.to_dict()
    outer, inner = sub_network(model, [0, 2, 3]), sub_network(model, [0, 2])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(output_of(model, batch), expected)
    inner.__exit__(None, None, None)
    assert torch.equal(output_of(model, batch), expected)
    assert model.config.to_dict() == config
