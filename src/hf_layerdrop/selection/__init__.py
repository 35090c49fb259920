"""Choose the layers: rules, search on a validation set and importance scores, one file each, all giving one record.

Names that need torch are imported on first use, so that the command line starts without it.
"""

from importlib import import_module
from typing import Any

from hf_layerdrop.selection.record import Neighbour, Scored, Selection
from hf_layerdrop.selection.strategies import STRATEGIES

_HOME_OF = {"search_layers": "search", "average_without_layer": "figure5", "measure_latency": "latency"}

__all__ = ["STRATEGIES", "Neighbour", "Scored", "Selection", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
