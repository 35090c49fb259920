"""What a layer adds, divided by its chance to run: equal to a model whose layers do that by hand, in any family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from architectures.tiny import Tiny, build_tiny
from conftest import build, layers_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, set_rates, set_step
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.state import LayerDropState

# Decoders, an encoder of images, encoder-decoders whose layers return tensors or tuples, norms on the branch, experts.
PRE_NORM = ["llama", "gpt2", "vit", "mbart", "t5", "olmo2", "mixtral"]
POST_NORM = ["BertModel", "RobertaForMaskedLM", "BartForConditionalGeneration", "BartForCausalLM"]
RATES = {"bernoulli": 0.4, "depth": 0.45}


@pytest.fixture(scope="module", params=PRE_NORM)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return build_tiny(request.param)


def by_hand(model: nn.Module, masks: dict[str, tuple[bool, ...]], factors: dict[str, tuple[float, ...]]) -> nn.Module:
    """Scale and drop by hooks, on a model without LayerDrop: what a dropped layer computed is thrown away."""

    def hook(runs: bool, factor: float, _: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        before = args[0] if args else next(iter(kwargs.values()))
        after = output[0] if isinstance(output, tuple) else output
        after = before + (after - before) * factor if runs else before
        return (after, *output[1:]) if isinstance(output, tuple) else after

    for name, layers in layers_of(model).items():
        for layer, runs, factor in zip(layers, masks[name], factors[name], strict=True):
            layer.register_forward_hook(partial(hook, runs, factor), with_kwargs=True)
    return model


def tensors_of(output: object) -> list[torch.Tensor]:
    values = [output] if torch.is_tensor(output) else list(output.values())
    flat = [part for value in values for part in (value if isinstance(value, tuple | list) else [value])]
    return [part for part in flat if torch.is_tensor(part) and part.is_floating_point()]


def run(model: nn.Module, batch: dict, **settings: object) -> list[torch.Tensor]:
    torch.manual_seed(0)
    cached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return tensors_of(model(**batch, **cached, **settings))


def gradients(model: nn.Module, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    sum((tensor * torch.linspace(-1, 2, tensor.numel()).view_as(tensor)).sum() for tensor in tensors).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


def same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Compare by the largest of all: those of the biases of keys are noise."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    pairs = [(found.get(name), gradient) for name, gradient in expected.items()]
    zero = [gradient for one, gradient in pairs if one is None]
    return (
        found.keys() <= expected.keys()
        and all(torch.allclose(one, other, rtol=1e-4, atol=1e-5 * largest) for one, other in pairs if one is not None)
        and all(float(gradient.abs().max()) < 1e-5 * largest for gradient in zero)
    )


@pytest.mark.parametrize("sampler", RATES)
def test_a_step_is_that_of_a_model_that_scales_by_hand(tiny: Tiny, sampler: str) -> None:
    model = tiny.copy()
    inject_layerdrop(model, LayerDropConfig(RATES[sampler], sampler=sampler, scale="kept", seed=1))
    state, differs = layerdrop_state(model), 0
    for step in range(4):
        set_step(model, step)
        masks = {name: draw.draw() for name, draw in state.draws.items()}
        factors = {name: draw.factors for name, draw in state.draws.items()}
        other = by_hand(tiny.copy(), masks, factors)
        found, expected = run(model.train(), tiny.batch), run(other.train(), tiny.batch)
        assert len(found) == len(expected)
        assert all(map(close, found, expected))
        assert same_gradients(gradients(model, found), gradients(other, expected))
        model.zero_grad(set_to_none=True)
        plain = run(by_hand(tiny.copy(), masks, {name: (1.0,) * len(mask) for name, mask in masks.items()}), tiny.batch)
        differs += not all(map(close, found, plain))
    assert differs > 1


def test_evaluation_and_rate_0_are_bit_equal_to_the_untouched_model(tiny: Tiny) -> None:
    model = tiny.copy()
    expected = run(tiny.model.eval(), tiny.batch)
    inject_layerdrop(model, LayerDropConfig(0.4, scale="kept"))
    assert all(map(torch.equal, run(model.eval(), tiny.batch), expected))
    set_rates(model, 0.0)
    other = tiny.copy().train()
    assert all(map(torch.equal, run(model.train(), tiny.batch), run(other, tiny.batch)))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_recorded_hidden_states_are_those_that_were_handed_on(family: str) -> None:
    tiny = build_tiny(family)
    model = tiny.copy()
    inject_layerdrop(model, LayerDropConfig(0.4, scale="kept", seed=2))
    draws = layerdrop_state(model).draws
    masks = {name: draw.draw() for name, draw in draws.items()}
    other = by_hand(tiny.copy(), masks, {name: draw.factors for name, draw in draws.items()})
    found = run(model.train(), tiny.batch, output_hidden_states=True)
    expected = run(other.train(), tiny.batch, output_hidden_states=True)
    assert len(found) == len(expected) > 4
    assert all(map(close, found, expected))
    assert not all(all(mask) for mask in masks.values())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_mask_execution_computes_the_same(family: str) -> None:
    tiny = build_tiny(family)
    outputs, grads = [], []
    for execution in ("skip", "mask"):
        model = tiny.copy()
        inject_layerdrop(model, LayerDropConfig(0.4, scale="kept", seed=2, execution=execution))
        set_step(model, 1)
        outputs.append(run(model.train(), tiny.batch))
        grads.append(gradients(model, outputs[-1]))
    assert all(map(close, *outputs))
    assert same_gradients(*grads)


def of_transformers(reentrant: bool, model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def around_layers(kind: CheckpointImpl, model: nn.Module) -> nn.Module:
    model.enable_input_require_grads()
    layers = model.model.layers
    for place, layer in enumerate(layers):
        layers[place] = checkpoint_wrapper(layer, kind)
    return model


class AroundAll(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, use_cache: bool = False, **batch: torch.Tensor) -> list[torch.Tensor]:
        return checkpoint(lambda: self.model(**batch, use_cache=use_cache).logits, use_reentrant=False)


CHECKPOINTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "reentrant": partial(of_transformers, True),
    "not reentrant": partial(of_transformers, False),
    "around each layer": partial(around_layers, CheckpointImpl.NO_REENTRANT),
    "around each layer, reentrant": partial(around_layers, CheckpointImpl.REENTRANT),  # whose second run is derived
    "around the model": AroundAll,
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_recomputation_scales_as_the_first_run_did(kind: str) -> None:
    tiny = build_tiny("llama")
    found = []
    for wrap in (lambda model: model, CHECKPOINTS[kind]):
        model = tiny.copy().train()
        inject_layerdrop(model, LayerDropConfig(0.4, scale="kept", seed=2))
        set_step(model, 3)
        outputs = run(wrap(model), tiny.batch)[:1]
        found.append(
            {name.replace("._checkpoint_wrapped_module", ""): p for name, p in gradients(model, outputs).items()}
        )
    assert same_gradients(*found)


def test_layers_that_are_compiled_one_by_one_scale_too() -> None:
    tiny = build_tiny("llama")
    plain, compiled = tiny.copy().train(), tiny.copy().train()
    for model in (plain, compiled):
        inject_layerdrop(model, LayerDropConfig(0.4, scale="kept", seed=2))
    for layer in compiled.model.layers:
        layer.compile(backend="eager")
    for step in range(3):
        set_step(plain, step)
        set_step(compiled, step)
        assert all(map(close, run(compiled, tiny.batch), run(plain, tiny.batch)))


@given(
    depth=st.integers(2, 12),
    rate=st.floats(0, 0.5),
    factor=st.floats(0, 1),
    sampler=st.sampled_from(["bernoulli", "depth", "nested", "list"]),
)
def test_on_average_a_layer_adds_what_it_adds_in_evaluation(
    depth: int, rate: float, factor: float, sampler: str
) -> None:
    configs = {
        "bernoulli": LayerDropConfig(rate, shape="linear", scale="kept"),
        "depth": LayerDropConfig(rate, sampler="depth", scale="kept"),
        "nested": LayerDropConfig(rate, sampler="depth", nested=True, scale="kept"),
        "list": LayerDropConfig.for_depths({depth: 1, 1: rate + 0.1}, scale="kept"),
    }
    state = LayerDropState(configs[sampler], {"layers": depth})
    state.scale_rates(factor)
    draw = state.draws["layers"]
    if sampler == "bernoulli":
        chances = [1 - r for r in draw.rates]
    else:
        drawn = list(zip(draw._masks, draw._weights, strict=True))
        chances = [sum(weight for mask, weight in drawn if mask[layer]) for layer in range(depth)]
    for chance, scale in zip(chances, draw.factors, strict=True):
        assert chance * scale == pytest.approx(1, abs=1e-9) or chance == 0


def test_rates_of_zero_and_one_equal_a_cut() -> None:
    tiny = build_tiny("llama")
    model, depth = tiny.copy(), len(tiny.model.model.layers)
    inject_layerdrop(model, LayerDropConfig([layer % 2 for layer in range(depth)], scale="kept"))
    found = run(model.train(), tiny.batch)
    assert all(map(torch.equal, found, run(prune_layers(tiny.copy(), "::2").train(), tiny.batch)))


@pytest.mark.parametrize("head", POST_NORM)
def test_post_norm_models_are_refused_and_left_as_they_are(head: str) -> None:
    model = build(head)
    before = model.config.to_dict()
    with pytest.raises(LayerDropConfigError, match=r"post-norm: layer 0 does not .* scale='none'"):
        inject_layerdrop(model, LayerDropConfig(0.2, scale="kept"))
    with pytest.raises(LayerDropStateError):
        layerdrop_state(model)
    assert model.config.to_dict() == before
    inject_layerdrop(model, LayerDropConfig(0.0, scale="kept"))  # which scales nothing
    with pytest.raises(LayerDropConfigError, match="post-norm"):
        set_rates(model, 0.2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": "half"}, "'none' or 'kept'"),
        ({"scale": "kept", "structure": "head"}, "cannot serve"),
        ({"scale": "kept", "structure": ("head", "layer")}, "cannot serve"),
    ],
)
def test_what_cannot_be_scaled_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(LayerDropConfigError, match=said):
        LayerDropConfig(0.2, **settings)
