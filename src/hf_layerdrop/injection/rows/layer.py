"""Run a layer on the rows of a batch that keep it, and hand the other rows on (``granularity="row"``).

The mixin stands in front of the one that skips a whole layer (`inject.py`), so that whatever that one does, it does for
the rows that run. A layer runs on equally many rows in every step and on every rank: neither DDP nor FSDP sees anything
of it, and a compiled layer sees one size of batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.injection.compiling import direct, in_compiled_region, outside_of_graphs, untraced
from hf_layerdrop.injection.passthrough import hidden_states_of_call
from hf_layerdrop.injection.rows.arguments import Batched, Call
from hf_layerdrop.injection.rows.outputs import Part
from hf_layerdrop.injection.rows.refusal import cannot, check_rows
from hf_layerdrop.injection.rows.trial import try_arguments
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.samplers.rows import RowMask


@dataclass
class RowPlace:
    """Where a layer stands.

    Attributes:
        draw: The draw of its stack.
        index: Its place in the stack.
        handed_on: Arguments that it returns, where reading it cannot tell.
        lent: Layers of the stack from which later ones borrow.
        checked: Whether it was found to treat rows apart, as far as looking tells: its rate may be raised from 0.
        batched: Which arguments of the layers of the stack have rows.
    """

    draw: StackDraw
    index: int
    handed_on: Sequence[str]
    lent: Sequence[int]
    batched: Batched
    checked: bool = False


def adopt_rows(layers: Iterable[nn.Module], draw: StackDraw, handed_on: Sequence[str], lent: Sequence[int]) -> None:
    """Let the layers of a stack, which can be skipped as a whole, run on some rows, in place."""
    batched = Batched()
    for index, layer in enumerate(layers):
        adopt(layer, RowLayer)
        layer.__dict__["_layerdrop_rows"] = RowPlace(draw, index, handed_on, lent, batched)


def release_rows(layers: Iterable[nn.Module]) -> None:
    """Undo `adopt_rows`."""
    for layer in layers:
        if "_layerdrop_rows" in layer.__dict__:
            release(layer, RowLayer)
            del layer._layerdrop_rows


class RowLayer:
    """Mixin of a layer that can be skipped: run it on the rows that keep it."""

    _layerdrop_rows: RowPlace
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on some rows, on all, or on none."""
        if not self._layerdrop_rows.draw.may_drop(self.training):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        if not (is_compiling() or in_compiled_region()):
            return self._run_on_rows(*args, **kwargs)
        return self._run_on_rows_outside(*args, **kwargs)

    def _run_on_rows(self, *args: Any, **kwargs: Any) -> Any:
        call = untraced if in_compiled_region() else direct
        run = super().__call__  # type: ignore[misc]
        part = call(_part_that_runs, self, run, args, kwargs)
        return run(*args, **kwargs) if part is None else call(part.put_back, run(*part.args, **part.kwargs))

    _run_on_rows_outside = outside_of_graphs(_run_on_rows)


def _part_that_runs(layer: Any, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Part | None:
    """Return the rows on which a layer runs in this forward, with their arguments; None if on all, or on none."""
    place: RowPlace = layer._layerdrop_rows
    mask = place.draw.in_force()
    if not isinstance(mask, RowMask) or not mask[place.index]:
        return None
    if not place.checked:
        check_rows([layer], place.lent)
        place.checked = True
    states = hidden_states_of_call(layer, args, kwargs)
    if not isinstance(states, torch.Tensor) or states.dim() < 3:
        raise cannot(layer, f"its hidden states are of shape {tuple(states.shape)}, in which rows are not apart")
    rows = len(states)
    if mask.rows not in (None, rows):
        raise cannot(layer, f"its hidden states have {rows} rows where those of a layer before it had {mask.rows}")
    place.draw.note_rows(mask, place.index, rows)
    if len(mask.kept(rows)[place.index]) == rows:
        return None
    whole = Call.of(layer, args, kwargs)
    if unknown := place.batched.unknown(whole, rows):
        place.batched.learn(try_arguments(layer, run, whole, unknown, rows))
    kept = partial(_indices, mask, place.index, rows)
    cut = place.batched.cut(layer, whole, rows, kept)
    return Part(layer, whole, cut, kept(states.device), place.handed_on)


def _indices(mask: RowMask, layer: int, rows: int, device: torch.device) -> torch.Tensor:
    """Return the rows on which a layer runs as indices: those of all layers are moved to a device together."""
    if device not in mask.moved:
        kept = mask.kept(rows)
        joined = torch.tensor([row for one in kept for row in one], pin_memory=device.type == "cuda")
        mask.moved[device] = joined.to(device, non_blocking=True).split([len(one) for one in kept])
    indices: torch.Tensor = mask.moved[device][layer]
    return indices
