"""torch.compile with the device's own backend: graphs by region, and one graph of a model that masks."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from conftest import batch_for, build, layers_of, loss_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_step
from on_device import device, needs_device  # noqa: F401

pytestmark = needs_device
BERT = "BertForSequenceClassification"


@pytest.fixture(autouse=True)
def _a_fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(model, batch, steps):
    losses, patterns = [], set()
    for step in range(steps):
        set_step(model, step)
        loss = loss_of(model, batch)
        loss.backward()
        model.zero_grad()
        losses.append(loss.detach().clone())
        patterns.add(layerdrop_state(model).draws["encoder"].draw())
    return losses, patterns


def backend(device):
    """Return what compiles for the device; a C++ compiler would take minutes, and graphs are counted."""
    return "inductor" if device.type == "cuda" else "eager"


def pair(device, execution):
    models = [build(BERT).to(device).train() for _ in range(2)]
    for model in models:
        inject_layerdrop(model, LayerDropConfig(0.5, seed=1, execution=execution))
    return models, {name: value.to(device) for name, value in batch_for(BERT).items()}


def test_regions_make_two_graphs_at_most_whatever_is_dropped(device):
    (model, eager), batch = pair(device, "skip")
    for layers in layers_of(model).values():
        for layer in layers:
            layer.compile(backend=backend(device))
    losses, patterns = trained(model, batch, 12)
    graphs = counters["stats"]["unique_graphs"]
    assert len(patterns) > 3
    assert graphs <= 2
    expected, _ = trained(eager, batch, 12)
    assert torch.allclose(torch.stack(losses), torch.stack(expected), atol=1e-3)


def test_a_masked_model_is_one_graph_also_as_a_cuda_graph(device):
    (model, eager), batch = pair(device, "mask")
    how = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": backend(device)}
    compiled = torch.compile(model, fullgraph=True, **how)
    losses, kept = [], set()
    for step in range(8):
        set_step(model, step)
        torch.compiler.cudagraph_mark_step_begin()
        losses.append(loss_of(compiled, batch).detach().clone())
        kept.add(layerdrop_state(model).draws["encoder"].draw())
    assert len(kept) > 3
    assert counters["stats"]["unique_graphs"] <= 2
    expected, _ = trained(eager, batch, 8)
    assert torch.allclose(torch.stack(losses), torch.stack(expected), atol=1e-3)
