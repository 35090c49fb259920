"""What LayerDrop promises of a model, as functions that raise when it does not hold: for the matrix and the tests."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_layerdrop import LayerDropConfig, inject_layerdrop, prune_layers, remove_layerdrop
from hf_layerdrop.architectures.families import bias_in_first_block
from hf_layerdrop.architectures.stacks import Stack, find_stacks
from hf_layerdrop.checkpoints.headers import read_checkpoint
from hf_layerdrop.checkpoints.stored_model import find_stored_model
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.pruning.loading import load_plain
from hf_layerdrop.pruning.prune import sub_network

from .tiny import CannotBuildError, PlainFailsError, Tiny, in_short

Check = Callable[[Tiny], bool | None]  # False if it does not apply


class CheckFailedError(Exception):
    """A promise does not hold for a model."""


def run_checks(tiny: Tiny) -> list[str]:
    """Run all checks that apply to a model and return their names."""
    if not stacks_that_run(tiny):
        check_stacks_run(tiny)
    check_plain_trains(tiny)
    return [name for name, check in CHECKS.items() if _applies_and_holds(name, check, tiny)]


def _applies_and_holds(name: str, check: Check, tiny: Tiny) -> bool:
    try:
        return check(tiny) is not False
    except CheckFailedError as error:
        raise CheckFailedError(f"{name}: {error}") from error


def check_plain_trains(tiny: Tiny) -> None:
    """Raise if plain transformers cannot train the model on the inputs; what LayerDrop does then says nothing."""
    try:
        _step(tiny, tiny.copy().train())
    except CheckFailedError:
        return  # it says more about itself later
    except Exception as error:
        raise PlainFailsError(f"plain transformers cannot train its tiny model: {in_short(error)}") from error


def stacks_that_run(tiny: Tiny) -> dict[str, Stack]:
    """Return the stacks of which every layer runs on the batch."""
    return {
        name: stack
        for name, stack in find_stacks(tiny.model).items()
        if {f"{stack.path}.{index}" for index in range(stack.depth)} <= tiny.ran
    }


def kept_layers(tiny: Tiny, layers: tuple[int, ...] = (0, 2)) -> dict[str, list[int]]:
    """Return the layers to keep: ``layers`` of the stacks that run, all of the others."""
    ran = stacks_that_run(tiny)
    stacks = find_stacks(tiny.model)
    return {
        name: [index for index in layers if index < stack.depth] or [0] if name in ran else list(range(stack.depth))
        for name, stack in stacks.items()
    }


def rates_for(tiny: Tiny, layers: tuple[int, ...]) -> dict[str, list[float]]:
    """Return the rates of 0 and 1 that always run the same layers."""
    kept = kept_layers(tiny, layers)
    return {
        name: [float(index not in kept[name]) for index in range(stack.depth)]
        for name, stack in find_stacks(tiny.model).items()
    }


def check_stacks_run(tiny: Tiny) -> None:
    """Every stack runs on the inputs that were found: else the other checks would say nothing of it."""
    ran, stacks = stacks_that_run(tiny), find_stacks(tiny.model)
    if missing := sorted(set(stacks) - set(ran)):
        others = f"; all other checks hold for {', '.join(sorted(ran))}" if ran else ""
        raise CannotBuildError(f"no inputs were found that run {', '.join(missing)}{others}")


def check_rate_0(tiny: Tiny) -> None:
    """At rate 0 in training, and after removal, outputs are those of the untouched model, bit for bit."""
    expected = tiny.outputs(tiny.copy().train())
    model = tiny.copy().train()
    names = list(model.state_dict())
    inject_layerdrop(model, 0.0)
    require_equal(tiny.outputs(model), expected, "rate 0 differs from the untouched model")
    require(list(model.state_dict()) == names, "weight names changed")
    remove_layerdrop(model)
    require_equal(tiny.outputs(model), expected, "it differs after LayerDrop was removed")


def check_rates_equal_cut(tiny: Tiny) -> None:
    """Dropping layers always gives what the model without them gives; and other layers give something else."""
    results = []
    for layers in ((0, 2), (1, 3)):
        cut = tiny.copy()
        prune_layers(cut, kept_layers(tiny, layers))
        expected = tiny.outputs(cut.train())
        model = tiny.copy().train()
        inject_layerdrop(model, LayerDropConfig(rates_for(tiny, layers)))
        found = tiny.outputs(model)
        require_equal(found, expected, f"rates that keep {layers} differ from the cut model")
        results.append(found)
    full = tiny.outputs(tiny.copy().train())
    require(differ(results[0], full), "the cut model equals the full one")
    require(differ(*results), "two cuts are equal")


def check_gradients(tiny: Tiny) -> None:
    """A training step gives no gradient to dropped layers, and one to the layers that run (if they have one plain)."""
    plain = tiny.copy().train()
    _step(tiny, plain)
    reached = {name for name, p in plain.named_parameters() if p.grad is not None}
    for layers in ((0, 2), (1, 3)):
        rates = rates_for(tiny, layers)
        model = tiny.copy().train()
        inject_layerdrop(model, LayerDropConfig(rates))
        _step(tiny, model)
        for name, stack in find_stacks(model).items():
            for index, layer in enumerate(stack.layers(model)):
                dropped = rates[name][index] == 1
                if dropped or any(n.startswith(f"{stack.path}.{index}.") for n in reached):
                    _check_layer_gradients(model, name, index, layer, dropped=dropped)


def _step(tiny: Tiny, model: PreTrainedModel) -> None:
    tensors = [tensor for tensor in tiny.outputs(model).values() if tensor.requires_grad]
    require(bool(tensors), "no output has a gradient")
    sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).sum() for t in tensors).backward()


def _check_layer_gradients(model: PreTrainedModel, stack: str, index: int, layer: Any, *, dropped: bool) -> None:
    bias = bias_in_first_block(find_stacks(model)[stack].model_type) if index == 0 else None
    spared = bias.weights if bias else ()
    parameters = {n: p for n, p in layer.named_parameters() if not set(spared) & set(n.split("."))}
    having = [name for name, p in parameters.items() if p.grad is not None]
    if dropped:
        require(not having, f"dropped layer {index} of {stack} has a gradient: {having[:2]}")
    else:
        require(bool(having), f"layer {index} of {stack} ran and has no gradient")


def check_hidden_states(tiny: Tiny) -> bool | None:
    """A training step at rate 0.5 has as many hidden states and attentions as at rate 0."""
    with torch.no_grad():
        try:
            expected = _lengths(tiny.copy().train(), tiny)
        except (TypeError, ValueError):
            return False
    if not expected:
        return False
    model = tiny.copy().train()
    inject_layerdrop(model, 0.5)
    for _ in range(2):
        found = _lengths(model, tiny)
        require(found == expected, f"per-layer outputs have {found} entries in place of {expected}")
    return None


def _lengths(model: PreTrainedModel, tiny: Tiny) -> dict[str, int]:
    outputs = model(**copy.deepcopy(tiny.batch), output_hidden_states=True)
    if not isinstance(outputs, Mapping):
        return {}
    return {name: len(value) for name, value in outputs.items() if "hidden_states" in name and isinstance(value, tuple)}


def check_reload(tiny: Tiny) -> None:
    """The pruned model, saved and reloaded by plain transformers, gives the same; so does keep_layers at load."""
    cut = tiny.copy()
    kept = kept_layers(tiny, (1, 2, 3))
    prune_layers(cut, kept)
    expected = tiny.outputs(copy.deepcopy(cut).eval())
    with sub_network(whole := tiny.copy(), kept):
        require_equal(tiny.outputs(whole), expected, "the sub-network in place differs from the cut model")
    require_equal(tiny.outputs(whole), tiny.outputs(tiny.model), "a sub-network left a trace")
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        again = type(cut).from_pretrained(folder, attn_implementation="eager", **own_config(cut, folder))
    require_equal(dict(again.state_dict()), dict(cut.state_dict()), "the reloaded model has other tensors")
    # Weights that lie elsewhere in memory may give another last bit, so both are compared as copies.
    require_equal(tiny.outputs(copy.deepcopy(again).eval()), expected, "the reloaded model differs")
    with tempfile.TemporaryDirectory() as folder:
        tiny.model.save_pretrained(folder)
        config = own_config(cut, folder)
        loaded = load_plain(type(cut), folder, keep_layers=kept, attn_implementation="eager", **config)
    require_equal(dict(loaded.state_dict()), dict(cut.state_dict()), "keep_layers at load gives other tensors")
    found = tiny.outputs(copy.deepcopy(loaded).eval())
    require_equal(found, expected, "keep_layers at load gives another model")


def own_config(model: PreTrainedModel, folder: str) -> dict[str, Any]:
    """Return the config to load with where the type has the class of another one, which would read it as its own."""
    kind = type(model.config)
    return {} if kind is type(model).config_class else {"config": kind.from_pretrained(folder)}


def headers_agree(tiny: Tiny) -> bool:
    """Tell whether its checkpoint shows the stacks that the model has."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.model.save_pretrained(folder)
        try:
            found = find_stored_model(read_checkpoint(folder)).depths
        except LayerDropError:
            return False
    return found == {name: stack.depth for name, stack in find_stacks(tiny.model).items()}


def check_generation(tiny: Tiny) -> bool | None:
    """The pruned model and the sub-network in place generate the same tokens, with and without a cache."""
    if not tiny.generates:
        return False
    kept = kept_layers(tiny, (1, 3))
    cut = tiny.copy()
    prune_layers(cut, kept)
    tokens = generated(cut, tiny, use_cache=False)
    if not torch.equal(tokens, generated(cut, tiny, use_cache=True)):
        if _plain_cache_differs(cut, tiny):
            raise PlainFailsError("plain transformers generates other tokens with its cache than without, cut or not")
        require(False, "the pruned model generates otherwise with cache")
    with sub_network(whole := tiny.copy(), kept):
        for use_cache in (False, True):
            require(
                torch.equal(tokens, generated(whole, tiny, use_cache=use_cache)),
                f"the sub-network in place generates otherwise (use_cache={use_cache})",
            )
    return None


def _plain_cache_differs(cut: PreTrainedModel, tiny: Tiny) -> bool:
    """Tell whether plain transformers generates otherwise with a cache: the whole model, or the cut one, reloaded."""
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        again = type(cut).from_pretrained(folder, attn_implementation="eager", **own_config(cut, folder))
    return any(
        not torch.equal(*(generated(model, tiny, use_cache=use_cache) for use_cache in (False, True)))
        for model in (tiny.copy(), again)
    )


def generated(model: PreTrainedModel, tiny: Tiny, *, use_cache: bool) -> torch.Tensor:
    """Return the tokens that a model generates greedily."""
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    batch = {name: value for name, value in copy.deepcopy(tiny.batch).items() if not name.startswith("decoder_")}
    if model.config.is_encoder_decoder:
        settings["decoder_start_token_id"] = 3
    torch.manual_seed(0)
    return model.eval().generate(**batch, **settings, use_cache=use_cache)


def require(holds: bool, otherwise: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise CheckFailedError(otherwise)


def require_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], otherwise: str) -> None:
    """Raise unless all tensors are equal, bit for bit."""
    require(list(found) == list(expected), f"{otherwise}: outputs {list(found)[:6]} and {list(expected)[:6]}")
    for name, tensor in found.items():
        require(torch.equal(tensor, expected[name]), f"{otherwise}: {name}")


def differ(found: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether any tensor differs."""
    return any(name not in other or not torch.equal(tensor, other[name]) for name, tensor in found.items())


CHECKS: dict[str, Check] = {
    "rate 0": check_rate_0,
    "rates equal the cut": check_rates_equal_cut,
    "gradients": check_gradients,
    "hidden states": check_hidden_states,
    "reload": check_reload,
    "generation": check_generation,
    "stacks run": check_stacks_run,  # last: what does run is checked all the same
}
