"""What was measured of a source, for what is cut out of it: records for its card, and its own recommended sets."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import table_beside
from hf_layerdrop.errors import CheckpointError, KeepLayersError, LayerDropError
from hf_layerdrop.hub.origin import Source
from hf_layerdrop.reports.card import MeasuredOn
from hf_layerdrop.results.recommended import as_results
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import RESULTS_FILE, read_results
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_logger = logging.getLogger(__name__)

# Arguments of loading with which a model computes something else than what lies in the checkpoint.
_CHANGING = (
    *("dtype", "torch_dtype", "quantization_config", "load_in_8bit", "load_in_4bit", "variant", "config"),
    *("gguf_file", "state_dict", "model_class"),
)


def measured_source(
    model: PreTrainedModel | str | os.PathLike[str], source: Source | None, options: Mapping[str, Any]
) -> Source | None:
    """Return the source if what was measured of it holds for the model; else None.

    A model in memory may have been trained since it was loaded, so that nothing is known of it; nor is of weights that
    are loaded as others than are stored.
    """
    changed = any(options.get(name) not in (None, "auto") for name in _CHANGING)
    return source if isinstance(model, str | os.PathLike) and not changed else None


def source_table(source: Source | None, options: Mapping[str, Any]) -> RecommendedSets | None:
    """Return the recommended sets of a source that is about to be cut; None, with a warning, for a broken table."""
    if source is None:
        return None
    try:
        table = table_beside(source.name, {**options, "revision": source.revision})
        table.check(_depths(source, options))
    except KeepLayersError as error:
        _logger.debug("No recommended sets are carried along: %s", error)
        return None
    except LayerDropError as error:
        _logger.warning("No recommended sets are carried along. %s", error)
        return None
    return table


def found_results(
    table: RecommendedSets | None, source: Source | None, given: Sequence[SubNetworkResult] | None
) -> tuple[list[SubNetworkResult], MeasuredOn | None]:
    """Return the records for a card, and the data behind them if the recommended sets say it.

    Those that were given, else those of the recommended sets, else of the results file that training left.

    Raises:
        CheckpointError: If there is a results file that holds none.
    """
    if given is not None:
        return list(given), None
    if table is not None:
        return as_results(table), MeasuredOn.of(table.measured_with.model_dump())
    beside = source.folder / RESULTS_FILE if source and source.is_folder and source.folder else None
    return (read_results(beside), None) if beside is not None and beside.is_file() else ([], None)


def table_of_cut(
    table: RecommendedSets | None, pruned: PreTrainedModel, keep_layers: KeepLayers
) -> RecommendedSets | None:
    """Return the recommended sets that a cut still has, in its own numbering; None where there is none."""
    if table is None or keep_layers is None:
        return table
    kept: Mapping[str, Sequence[int]] = saved_provenance(pruned.config).get("keep_layers") or {}
    return table.cut({stack: kept.get(stack, range(depth)) for stack, depth in table.depths.items()})


def _depths(source: Source, options: Mapping[str, Any]) -> dict[str, int]:
    """Return the depths of the whole model, which the table has to be of, from its config and headers alone."""
    from hf_layerdrop.checkpoints.remote_headers import read_headers
    from hf_layerdrop.checkpoints.stored_model import find_stored_model

    if options.get("use_safetensors") is False:
        raise CheckpointError("Pickled weights do not say which layers they hold: save them as safetensors first.")
    where = {name: options[name] for name in ("token", "subfolder", "cache_dir") if options.get(name) is not None}
    headers = read_headers(source.name, revision=source.revision, **where)
    return find_stored_model(headers, trust_remote_code=bool(options.get("trust_remote_code"))).depths
