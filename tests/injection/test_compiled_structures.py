"""torch.compile and parts of layers: which of them are dropped makes no other graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from conftest import assert_same_tensors, batch_for, build, gradients_of, layers_of, loss_of, output_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_step, structure_sub_network
from hf_layerdrop.injection import compiling
from structure_models import inputs, new

BERT = "BertForSequenceClassification"
MODELS = [BERT, "BartForConditionalGeneration", "LlamaModel"]
STRUCTURES: list[tuple[str, ...]] = [("attention", "ffn"), ("head",), ("head", "attention", "layer")]
BY_STRUCTURE = pytest.mark.parametrize("structure", STRUCTURES, ids="+".join)
A_BLOCK = 9  # graphs of one shape of block at most: it is taken apart where a part is asked whether it is dropped


@pytest.fixture(autouse=True)
def _a_fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    compiling.warn_of_whole_model.cache_clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def injected(name: str, structure: tuple[str, ...], rate: float = 0.5) -> Any:
    model = new(name)
    model.config.use_cache = False  # see docs/compile.md
    inject_layerdrop(model, LayerDropConfig(rate, seed=1, structure=structure))
    return model.train()


def compile_layers(model: Any, backend: Any) -> None:
    for layers in layers_of(model).values():
        for layer in layers:
            layer.compile(backend=backend)


def patterns_alike(found: Callable[..., Any], model: Any, expected: Any, steps: int) -> int:
    """Compare losses and gradients of training steps; return how many sets of parts ran in them."""
    batch, patterns = inputs(type(model).__name__), set()
    for step in range(steps):
        set_step(model, step)
        set_step(expected, step)
        patterns.add(tuple(draw.draw() for draw in layerdrop_state(model).draws.values()))
        loss, other = loss_of(found, batch), loss_of(expected, batch)  # type: ignore[arg-type]
        assert torch.allclose(loss, other, atol=1e-5)
        assert_same_tensors(gradients_of(model, loss), gradients_of(expected, other), atol=1e-5)
    return len(patterns)


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("name", "structure"),
    [
        *((BERT, structure) for structure in STRUCTURES),
        *((name, ("head", "attention", "ffn", "layer")) for name in MODELS[1:]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_regional_compilation_makes_no_graph_for_another_set_of_parts(name: str, structure: tuple[str, ...]) -> None:
    graphs = CompileCounterWithBackend("eager")
    model, expected = injected(name, structure), injected(name, structure)
    compile_layers(model, graphs)
    patterns_alike(model, model, expected, 3)
    after_three = graphs.frame_count
    assert after_three <= A_BLOCK * len(layers_of(model))
    assert patterns_alike(model, model, expected, 24) > 12
    assert graphs.frame_count == after_three


@pytest.mark.cases(1)
@BY_STRUCTURE
def test_a_whole_model_that_drops_parts_is_compiled_in_parts_and_says_so(
    structure: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    graphs = CompileCounterWithBackend("eager")
    model, expected = injected(BERT, structure), injected(BERT, structure)
    compiled = torch.compile(model, backend=graphs)
    with caplog.at_level(logging.WARNING, "hf_layerdrop"):
        patterns_alike(compiled, model, expected, 3)
    after_three = graphs.frame_count
    assert patterns_alike(compiled, model, expected, 24) > 12
    assert graphs.frame_count == after_three
    assert "regional compilation" in caplog.text


@pytest.mark.cases(1)
@BY_STRUCTURE
def test_regional_compilation_of_parts_is_not_warned_of(
    structure: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    model = injected(BERT, structure)
    compile_layers(model, "eager")
    with caplog.at_level(logging.WARNING, "hf_layerdrop"):
        loss_of(model, batch_for(BERT)).backward()
    assert "regional" not in caplog.text


@pytest.mark.cases(2)
@BY_STRUCTURE
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_where_no_part_can_be_dropped_it_is_one_full_graph(rate: float, structure: tuple[str, ...]) -> None:
    graphs = CompileCounterWithBackend("eager")
    model = injected(BERT, structure, rate).train(rate == 0)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    assert torch.allclose(output_of(compiled, batch_for(BERT)), output_of(build(BERT), batch_for(BERT)), atol=1e-6)
    assert graphs.frame_count == 1


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("how", "keep"),
    [
        ("whole", {"encoder/attention": "::2", "encoder/head": {0: [1]}, "encoder/ffn": [0]}),
        ("regional", {"encoder/attention": "::2"}),
        ("regional", {"encoder/head": {0: [1]}}),
        ("regional", {"encoder/ffn": [0]}),
    ],
    ids=str,
)
def test_a_sub_network_of_a_compiled_model_is_that_of_the_model(how: str, keep: dict[str, Any]) -> None:
    model, expected = (injected(BERT, ("attention", "ffn", "head")).eval() for _ in range(2))
    found: Any = model
    if how == "whole":
        found = torch.compile(model, backend="eager")
    else:
        compile_layers(model, "eager")
    whole = output_of(found, batch_for(BERT))  # compiled before it is cut
    with structure_sub_network(model, keep), structure_sub_network(expected, keep):
        assert torch.allclose(output_of(found, batch_for(BERT)), cut := output_of(expected, batch_for(BERT)), atol=1e-6)
    assert not torch.allclose(whole, cut, atol=1e-4)
    assert torch.allclose(output_of(found, batch_for(BERT)), whole, atol=1e-6)
