"""An interrupt at any line of ours leaves a model as it was: whole, or cut for good, and nothing between."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import hf_layerdrop
from conftest import batch_for, build, output_of
from hf_layerdrop import inject_layerdrop, prune_layers, sub_network
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.samplers.keep_layers import parse_keep_layers

OURS = str(Path(hf_layerdrop.__file__).parent / "pruning")
KEPT = {"BertModel": [0, 3], "BartModel": {"encoder": [0, 3], "decoder": [1, 2]}}


def interrupted_at(line: int, work: Callable[[], Any]) -> bool:
    """Do some work, interrupt it before the given line of ours that it runs, and tell whether it got so far."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(OURS):
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
