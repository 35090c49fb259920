"""What layers cannot run on some of the rows of a batch, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from hf_layerdrop.errors import UnsupportedModelError

_ACROSS_ROWS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def cannot(layer: nn.Module, why: str) -> UnsupportedModelError:
    """Return the error that says why a layer cannot run on some rows alone."""
    return UnsupportedModelError(
        f"granularity='row' runs a {type(layer).__name__} on some rows of a batch, but {why}; inject "
        "LayerDropConfig(..., granularity='batch')."
    )


def check_rows(layers: Iterable[nn.Module], lent: Sequence[int]) -> None:
    """Refuse layers whose rows are not independent of each other, as far as looking at the layers tells.

    Raises:
        UnsupportedModelError: If they normalise over the batch, or later ones borrow what ``lent`` computed of all
            rows.
    """
    for layer in layers:
        if lent:
            raise cannot(layer, "later layers borrow keys and values from earlier ones, of all rows")
        if any(isinstance(part, _ACROSS_ROWS) for part in layer.modules()):
            raise cannot(layer, "it normalises over the rows of a batch (BatchNorm)")
