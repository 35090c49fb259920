"""Try once what an argument of a layer is: whether it has rows, and along which dimension.

The layer runs twice without gradient, on all rows and on all but the first, with other values in the arguments that
are tried: where the second run gives what the first gave for these rows, they were cut rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, product
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hf_layerdrop.injection.recorded_outputs import collected_outputs
from hf_layerdrop.injection.rows.arguments import Along, Batched, Call, Key
from hf_layerdrop.injection.rows.refusal import cannot

Run = Callable[..., Any]
_MOST_TRIALS = 16


def try_arguments(
    layer: nn.Module, run: Run, call: Call, unknown: Mapping[Key, torch.Tensor], rows: int
) -> dict[Key, Along]:
    """Return along which dimension the unknown arguments of a call have the rows of the batch, None if along none.

    Raises:
        UnsupportedModelError: If the layer gives the same for a row in no case, or its weights are spread over ranks,
            of which each may have other sizes to ask about.
    """
    shown = ", ".join(f"{path} of shape {tuple(tensor.shape)}" for (path, _), tensor in unknown.items())
    if any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in layer.parameters()):
        raise cannot(layer, f"whether its {shown} has rows is not known, and is not tried on weights that are sharded")
    with _leaving_no_trace(layer):
        scrambled = _scrambled(layer, call, unknown)
        whole = _first(run(*scrambled.args, **scrambled.kwargs))
        for choice in islice(product(*(_choices(tensor, rows) for tensor in unknown.values())), _MOST_TRIALS):
            found: dict[Key, Along] = dict(zip(unknown, choice, strict=True))
            if _holds(layer, run, scrambled, found, rows, whole):
                return found
    raise cannot(layer, f"its {shown} cannot be cut to rows so that each row gives what it gave among all")


def _choices(tensor: torch.Tensor, rows: int) -> list[Along]:
    choices: list[Along] = [along for along in (0, 1) if along < tensor.dim() and tensor.shape[along] == rows]
    if tensor.shape[0] % rows == 0 and 0 not in choices:
        choices.append(0)  # a block of entries for each row
    return [*choices, None]


def _holds(layer: nn.Module, run: Run, call: Call, found: Mapping[Key, Along], rows: int, whole: torch.Tensor) -> bool:
    """Tell whether a call that is cut as ``found`` says gives what the whole one gives for its rows."""
    batched = Batched()
    batched.unknown(call, rows)  # those that are known by name
    batched.learn(found)
    kept = torch.arange(1, rows)
    cut = batched.cut(layer, call, rows, kept.to)
    try:
        part = _first(run(*cut.args, **cut.kwargs))
    except Exception:  # of whatever kind: sizes do not fit each other
        return False
    expected = whole[1:]
    if part.shape != expected.shape:
        return False
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    scale = float(expected.nan_to_num().abs().max())
    return torch.allclose(part, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _scrambled(layer: nn.Module, call: Call, unknown: Mapping[Key, torch.Tensor]) -> Call:
    """Return the call with other values in its hidden states and in what is tried, so that no two rows are alike."""
    generator = torch.Generator().manual_seed(0)  # of its own: no global one is read or advanced

    def other(path: str, tensor: torch.Tensor) -> torch.Tensor:
        if path != call.states and (path, tensor.dim()) not in unknown:
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.randn(tensor.shape, generator=generator).to(tensor)
        return torch.randint(0, 2, tensor.shape, generator=generator).to(tensor)  # in the range of any index or mask

    return call.changed(layer, other)


def _first(output: Any) -> torch.Tensor:
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first


@contextmanager
def _leaving_no_trace(layer: nn.Module) -> Iterator[None]:
    """Run a layer as in evaluation, which draws no dropout, and let no output of it be recorded."""
    collected = collected_outputs() or {}
    lengths = {key: len(entries) for key, entries in collected.items() if isinstance(entries, list)}
    training = [part for part in layer.modules() if part.training]
    try:
        for part in training:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
        for key, length in lengths.items():
            del collected[key][length:]
