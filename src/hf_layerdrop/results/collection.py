"""What `evaluate_depths` returns: a list of records that knows its views, in notebooks too."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, overload

from hf_layerdrop.errors import LayerDropConfigError, require
from hf_layerdrop.results.plot import depth_figure
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import metric_names, render_html
from hf_layerdrop.samplers.keep_layers import format_keep_layers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class SubNetworkResults(list[SubNetworkResult]):
    """Records of sub-networks of one model, in the order in which they were asked for.

    A list like any other; a notebook shows it as a table.
    """

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a sub-network: depth, kept layers by stack as text, parameters, each metric, time.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        require("pandas")
        import pandas as pd

        stacks = list(dict.fromkeys(stack for result in self for stack in result.keep_layers))
        names = {stack: "keep_layers" if len(stacks) == 1 else f"keep_layers_{stack}" for stack in stacks}
        rows = [
            {
                "depth": result.depth,
                **{names[stack]: format_keep_layers({stack: kept}) for stack, kept in result.keep_layers.items()},
                "parameters": result.parameters,
                **result.metrics,
                "seconds_per_batch": result.seconds_per_batch,
                "layer_forwards": result.layer_forwards,
            }
            for result in self
        ]
        return pd.DataFrame(rows)

    def plot(self, metric: str | None = None, *, title: str | None = None) -> Figure:
        """Draw a metric against depth, the first one if it is left out; a notebook shows the figure that is returned.

        Raises:
            LayerDropConfigError: If no record has this metric, or any.
            MissingExtraError: If matplotlib is not installed.
        """
        require("matplotlib")
        names = metric_names(self)
        if metric is None and not names:
            raise LayerDropConfigError("There is nothing to draw: no result has a metric.")
        return depth_figure({"": self}, metric or names[0], title)

    def _repr_html_(self) -> str:
        return render_html(self) if self else "<p>No results.</p>"

    @overload
    def __getitem__(self, index: SupportsIndex) -> SubNetworkResult: ...
    @overload
    def __getitem__(self, index: slice) -> SubNetworkResults: ...
    def __getitem__(self, index: SupportsIndex | slice) -> SubNetworkResult | SubNetworkResults:
        """Return one record, or some as a list that has these views too."""
        return SubNetworkResults(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)
