"""Find out whether a layer computes with its own number, which a cut changes, by running it at its old and new place.

It is run on the meta device, where layers of any width cost no memory and no arithmetic, and what is compared is which
functions of torch it calls, in which order, with which numbers. Most families use the number as the place in a cache
alone, as their source says: those are not run.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel

from hf_layerdrop.architectures.layer_idx import numbered_parts
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

Kept = Mapping[str, Sequence[int]]
Move = tuple[str, int, int]  # a stack, the place of a layer in it, and the place after a cut
Call = tuple[tuple[Any, ...], dict[str, Any]]
Step = tuple[str, Any, Any]

# Whose argument or index a number is that is the place in a cache, and nothing more.
_CACHE = re.compile(r"cache|past|is_updated")
_OPENING, _CLOSING = "([{", ")]}"
_STATEMENT = 400  # letters, which is longer than any statement
MODELS = 100  # so many are remembered

_known: dict[tuple[type, str], dict[Move, str]] = {}  # what differs, by model and settings; empty if nothing does
_warned: set[str] = set()


def counting_stacks(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> dict[str, Stack]:
    """Return the stacks whose source does not tell that numbers of layers are places in a cache, and nothing more."""
    return {name: stack for name, stack in stacks.items() if _may_compute(list(stack.layers(model)))}


def check_numbers(
    whole: PreTrainedModel, stacks: Mapping[str, Stack], kept: Kept, rebuild: Callable[[], PreTrainedModel]
) -> bool:
    """Refuse a cut after which a layer would compute something else, because it computes with its number.

    Args:
        whole: The whole model, on the meta device.
        stacks: Those of its stacks that `counting_stacks` gives.
        kept: The layers that are kept.
        rebuild: Builds the cut model on the meta device.

    Returns:
        Whether that could be tried, where it needs to be.

    Raises:
        UnsupportedModelError: If one would. Where that cannot be tried, a warning says so, once a model type.
    """
    moves = [(name, old, new) for name in stacks for new, old in enumerate(kept[name]) if old != new]
    if not moves:
        return True
    if len(_known) > MODELS:
        _known.clear()
    known = _known.setdefault((type(whole), repr(whole.config.to_dict())), {})
    if new := [move for move in moves if move not in known]:
        try:
            known |= _tried(whole, rebuild(), stacks, new)
        except Exception as error:
            _warn(whole.config.model_type, error)
            return False
    for name, old, place in moves:
        if difference := known[name, old, place]:
            raise UnsupportedModelError(
                f"{type(whole).__name__} cannot be cut to {name}={list(kept[name])}: layer {old} computes with "
                f"its own number, and would compute something else at place {place} ({difference}); keep the layers "
                "before it too, or all."
            )
    return True


def _may_compute(layers: Sequence[nn.Module]) -> bool:
    return any(_computes(type(place.part).__module__, place.field) for place in numbered_parts(layers))


@cache
def _computes(module: str, field: str) -> bool:
    """Tell whether anything in the source of a module reads a number as more than the place in a cache."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):  # written while the program ran, say
        return True
    reads = [found.start() for found in re.finditer(rf"\w\.{field}\b(?!\s*(=(?!=)|:))", source)]
    return any(_function(source, at) != "__init__" and not _CACHE.search(_taker(source, at)) for at in reads)


def _function(source: str, at: int) -> str:
    """Return the name of the function around a place; what ``__init__`` computes is in the layer's settings."""
    found = re.match(r"\s*def (\w+)", source[source.rfind("\n    def ", 0, at) :])
    return found[1] if found else ""


def _taker(source: str, at: int) -> str:
    """Return the name of what takes the argument or the index that stands at a place."""
    before, depth = source[max(0, at - _STATEMENT) : at], 0
    for place in range(len(before) - 1, -1, -1):
        depth += (before[place] in _CLOSING) - (before[place] in _OPENING)
        if depth < 0:
            found = re.search(r"[\w.]*$", before[:place])
            return found[0] if found else ""
    return ""


def _tried(
    whole: PreTrainedModel, cut: PreTrainedModel, stacks: Mapping[str, Stack], moves: Sequence[Move]
) -> dict[Move, str]:
    """Run each layer at its old place and at its new one, on the same inputs, and tell what differs."""
    found: dict[Move, str] = {}
    for model in (whole, cut):
        model.to("meta").eval()  # a few weights are made past the device that was asked for
    with streams_untouched(), torch.no_grad():
        for name in dict.fromkeys(name for name, _, _ in moves):
            before, after = stacks[name].layers(whole), stacks[name].layers(cut)
            wanted = [(old, new) for stack, old, new in moves if stack == name]
            calls = calls_of(whole, stacks[name], max(old for old, _ in wanted))
            for old, new in wanted:
                found[name, old, new] = _difference(*(_steps(at, calls[old]) for at in (before[old], after[new])))
    return found


class _SeenEnoughError(Exception):
    """The last layer that matters has its inputs."""


def calls_of(model: PreTrainedModel, stack: Stack, last: int) -> list[Call]:
    """Return what the layers of a stack are called with, up to one, in the model around them that runs."""
    above = [stack.owner_path.rsplit(".", cut)[0] for cut in range(stack.owner_path.count(".") + 1)]
    holders = [model.get_submodule(path) for path in above] + [model]
    problem: Exception | None = None
    models = [holder for holder in holders if isinstance(holder, PreTrainedModel)]
    # Without a cache, some look into their inputs for sequences that were packed into one.
    for holder, use_cache in product(models, (False, True)):
        calls: list[Call] = []
        try:
            _run(
                holder, {**_plain_inputs(holder), "use_cache": use_cache}, list(stack.layers(model))[: last + 1], calls
            )
        except Exception as error:
            problem = problem or error
        if len(calls) == last + 1:
            return calls
    raise problem or RuntimeError("its layers did not run")


def _run(model: PreTrainedModel, inputs: dict[str, Any], layers: Sequence[nn.Module], calls: list[Call]) -> None:
    taken = inspect.signature(model.forward).parameters

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((_without_cache(args), _without_cache(kwargs)))
        if layer is layers[-1]:
            raise _SeenEnoughError

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.device("meta"):
            model(**{name: value for name, value in inputs.items() if name in taken})
    except _SeenEnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _without_cache(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_cache(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_without_cache(entry) for entry in value)
    return None if isinstance(value, Cache) else value


def _plain_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Return inputs without contents for a model that takes text or images."""
    tokens = torch.zeros(1, 4, dtype=torch.long, device="meta")
    size = getattr(model.config, "image_size", None) or 32
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(model.config, "num_channels", 3)
    image = torch.zeros(1, channels, height, width, device="meta")
    return {"input_ids": tokens, "decoder_input_ids": tokens, "pixel_values": image}


class _Steps(TorchFunctionMode):
    """Note which functions of torch run on what: numbers as they are, tensors by where they come from."""

    def __init__(self, layer: nn.Module, call: Call) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._held: list[Any] = []  # so that no two tensors have one id
        own = {id(tensor): name for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}
        given = {id(value): f"input {number}" for number, value in enumerate(_flat(call))}
        self._names = {**given, **own}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and note it."""
        self.steps.append((getattr(func, "__name__", str(func)), self._shown(args), self._shown(kwargs or {})))
        result = func(*args, **(kwargs or {}))
        for number, value in enumerate(_flat(result)):
            self._held.append(value)
            self._names[id(value)] = f"result {len(self.steps)}.{number}"
        return result

    def _shown(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._names.get(id(value), str(tuple(value.shape)))
        if isinstance(value, Mapping):
            return tuple((str(key), self._shown(entry)) for key, entry in value.items())
        if isinstance(value, list | tuple):
            return tuple(self._shown(entry) for entry in value)
        plain = value is None or isinstance(value, bool | int | float | str | slice | torch.dtype | torch.device)
        return repr(value) if plain else type(value).__name__


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _flat(entry)


def _steps(layer: nn.Module, call: Call) -> list[Step]:
    args, kwargs = call
    with torch.device("meta"), _Steps(layer, call) as noted:
        layer(*args, **kwargs)
    return noted.steps


def _difference(before: Sequence[Step], after: Sequence[Step]) -> str:
    """Say in a few words where two runs of a layer differ; empty if they do not."""
    for old, new in zip(before, after, strict=False):
        if old != new:
            return f"{_said(old)} and then {_said(new)}"
    return "" if len(before) == len(after) else f"{len(before)} steps and then {len(after)}"


def _said(step: Step) -> str:
    function, args, kwargs = step
    numbers = [entry for entry in (*args, *(value for _, value in kwargs)) if re.fullmatch(r"[-+.\w]+", str(entry))]
    return f"{function}({', '.join(['...', *map(str, numbers)])})"


@contextmanager
def streams_untouched() -> Iterator[None]:
    """Leave the global streams of random numbers as they are, whatever a forward does."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _warn(model_type: str, error: Exception) -> None:
    if model_type not in _warned:
        _warned.add(model_type)
        logger.warning(
            "Whether a layer of %s computes with its own number, which a cut changes, could not be tried (%s): compare "
            "the saved model with the whole one, its other layers dropped.",
            model_type,
            " ".join(str(error).split())[:200] or type(error).__name__,
        )
