"""Save a sub-network as a folder that plain transformers loads."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.outputs import check_apart, check_replaceable, whole_folder
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import write_recommended
from hf_layerdrop.checkpoints.strangers import reason_of
from hf_layerdrop.errors import CheckpointError, LayerDropError, MissingExtraError, UnsupportedModelError
from hf_layerdrop.hub.carried import found_results, measured_source, source_table, table_of_cut
from hf_layerdrop.hub.origin import Processor, Source, check_cut, check_processors, find_source, load_pruned
from hf_layerdrop.reports.card import CardInfo, MeasuredOn, render_card
from hf_layerdrop.reports.card_facts import made_with, task_of
from hf_layerdrop.results.plot import draw_depth_plot
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import metric_names
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_logger = logging.getLogger(__name__)

_PLOT_STEM = "depth"

# Arguments of save_pretrained: what it is told, and what has its own way here.
_SAVING = ("save_original_format",)
_SIZE = re.compile(r"0*[1-9]\d*(\.\d+)?\s*[KMGT]B", re.IGNORECASE)
_NOT_HERE = {
    "push_to_hub": "push_pruned_to_hub publishes a sub-network",
    "is_main_process": "one process saves, so call it in one",
    "distributed_checkpoint": "a sub-network is saved whole by one process",
    "save_peft_format": "a model with an adapter is not saved here; merge it first, with merge_and_unload",
}


class SavingArgumentError(LayerDropError, ValueError, TypeError):
    """An argument of ``save_pretrained`` is not taken, or has no meaning."""


def save_pruned(
    model: PreTrainedModel | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    keep_layers: KeepLayers,
    results: Sequence[SubNetworkResult] | None = None,
    plot: str | os.PathLike[str] | bool | None = None,
    overwrite: bool = False,
    tokenizer: Processor | None = None,
    measured_on: MeasuredOn | None = None,
    revision: str | None = None,
    max_shard_size: int | str | None = None,
    **load_kwargs: Any,
) -> Path:
    """Write a sub-network as a plain checkpoint with tokenizer and model card; the folder appears whole or not at all.

    Args:
        model: A model in memory, which stays as it is, or the folder or Hub id of a checkpoint.
        output_dir: The folder to make.
        keep_layers: The layers to keep, in any form that `hf_layerdrop.samplers.keep_layers` reads; None keeps all.
        results: What `evaluate_depths` measured, for the card. The record of this very sub-network becomes its
            ``model-index``. Left out, what lies beside the source: its recommended sets, else ``depth_results.json``.
        plot: A picture for the card (an SVG or PNG of the same name beside it comes along). Left out, it is drawn from
            ``results`` if they have more than one depth and matplotlib is installed; False leaves it out.
        overwrite: Replace an existing checkpoint folder.
        tokenizer: A tokenizer or processor to save. Left out, its files are copied from the model's source; False saves
            none.
        measured_on: The data behind ``results``, for the card; left out, what `train` noted in the source's config.
        revision: Revision of the source; like ``load_kwargs`` only for a name.
        max_shard_size: As for transformers' ``save_pretrained``.
        **load_kwargs: Passed to ``from_pretrained``; ``model_class`` to `load_checkpoint`, ``save_original_format`` to
            ``save_pretrained``.

    Raises:
        CheckpointError: The source has no tokenizer, or cannot be loaded.
        OutputExistsError: ``output_dir`` exists. Nothing was loaded or written.
    """
    output_dir = Path(output_dir)
    saving, load_kwargs = saving_arguments(max_shard_size, load_kwargs)
    if read := os.fspath(model) if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", ""):
        check_apart(output_dir, read)
    with whole_folder(output_dir, partial(check_replaceable, output_dir, overwrite)) as folder:
        source = find_source(model, revision, load_kwargs)
        check_processors(source, model, tokenizer)
        check_cut(source, keep_layers)
        measured = measured_source(model, source, load_kwargs)
        table = source_table(measured, load_kwargs)
        records, data = found_results(table, measured, results)
        with _without_bars():
            pruned, state = load_pruned(model, keep_layers, revision, load_kwargs)
            sets, saving = table_of_cut(table, pruned, keep_layers), {**saving, "state_dict": state}
            extras = Extras(tuple(records), plot, tokenizer, measured_on or data, saving, sets)
            name = output_dir.resolve().name
            write_checkpoint(pruned, folder, name, source, extras)
    return output_dir


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from showing how it loads and saves weights, which are only copied."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Extras:
    """What goes into the folder beside the model; see `save_pruned`."""

    results: Sequence[SubNetworkResult] = ()
    plot: str | os.PathLike[str] | bool | None = None
    tokenizer: Processor | None = None
    measured_on: MeasuredOn | None = None
    saving: Mapping[str, Any] = field(default_factory=dict)
    recommended: RecommendedSets | None = None


def saving_arguments(
    max_shard_size: int | str | None, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what ``save_pretrained`` takes from what ``from_pretrained`` does.

    Raises:
        SavingArgumentError: For one of ``save_pretrained`` that has no meaning here, or no size.
    """
    for name in set(_NOT_HERE) & set(kwargs):
        raise SavingArgumentError(f"{name} is not taken here: {_NOT_HERE[name]}.")
    if max_shard_size is not None and not _is_size(max_shard_size):
        raise SavingArgumentError(f"max_shard_size={max_shard_size!r} is no size: give bytes, or a text such as '2GB'.")
    saving = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    saving |= {name: kwargs[name] for name in _SAVING if name in kwargs}
    return saving, {name: value for name, value in kwargs.items() if name not in _SAVING}


def _is_size(size: object) -> bool:
    if isinstance(size, str):
        return _SIZE.fullmatch(size.strip()) is not None
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


def write_checkpoint(pruned: PreTrainedModel, folder: Path, name: str, source: Source | None, extras: Extras) -> None:
    """Write a pruned model, its tokenizer and its card into a folder; ``name`` is how the card says to load it."""
    if getattr(pruned, compat.ADAPTER_LOADED.name, False):
        raise UnsupportedModelError(
            "The model has a PEFT adapter, which would be saved without its base: put it on with "
            "PeftModel.from_pretrained, call prune_layers on that and save what merge_and_unload() returns."
        )
    _save(pruned, folder, extras.saving)
    _write_processors(folder, source, extras.tokenizer)
    if source is not None and source.folder is not None:
        _copy_beside(folder, source.folder, source.companion_files())
    if extras.recommended is not None:
        write_recommended(extras.recommended, folder)
    plot = _write_plot(folder, extras.results, extras.plot)
    config = pruned.config.to_dict()
    info = _card_info(name, config, source, extras.measured_on, _machine_of(extras.recommended))
    card = render_card(
        config,
        info,
        parameters=pruned.num_parameters(),
        results=extras.results,
        plot=plot,
        unplotted=plot is None and _wants_plot(extras.results, extras.plot),
        recommended=extras.recommended,
    )
    card.save(folder / "README.md")


def _save(pruned: PreTrainedModel, folder: Path, arguments: Mapping[str, Any]) -> None:
    try:
        pruned.save_pretrained(folder, **arguments)
    except NotImplementedError:  # of some quantized weights transformers knows no way back to how they stood in a file
        pruned.save_pretrained(folder, **{**arguments, "save_original_format": False})
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # configs are checked once more
        raise CheckpointError(
            f"What the checkpoint's configs say cannot be saved again ({reason_of(error)}): correct its config.json or "
            "generation_config.json, and call again."
        ) from error


def _write_processors(folder: Path, source: Source | None, tokenizer: Processor | None) -> None:
    if tokenizer is False:
        return
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        return
    if source is None or source.folder is None:  # check_processors has said so
        return
    _copy_beside(folder, source.folder, source.processor_files())


def _copy_beside(folder: Path, home: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        target = folder / path.relative_to(home)
        if not target.exists():  # else the save has written it, of this model
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _card_info(
    name: str, config: Mapping[str, Any], source: Source | None, given: MeasuredOn | None, machine: str | None
) -> CardInfo:
    tag, served = task_of(config)
    provenance = saved_provenance(config)
    return CardInfo(
        name=name,
        source=source.name if source else provenance.get("source"),
        revision=(source.revision if source else None) or provenance.get("revision"),
        pipeline_tag=tag,
        served=served,
        inherited=source.card_metadata() if source else {},
        measured_on=given or MeasuredOn.of(provenance.get("measured_on") or {}),
        machine=machine,
        made_with=made_with(),
    )


def _machine_of(recommended: RecommendedSets | None) -> str | None:
    """Return what the recommended sets were timed on, if it was one machine."""
    names = {one.machine for one in recommended.sets if one.seconds_per_batch} if recommended else set()
    return names.pop() if len(names) == 1 else None


def _write_plot(
    folder: Path, results: Sequence[SubNetworkResult], plot: str | os.PathLike[str] | bool | None
) -> str | None:
    """Copy or draw the plot; return the file name for the card."""
    if isinstance(plot, str | os.PathLike):
        return _copy_plot(Path(plot), folder)
    if not _wants_plot(results, plot):
        return None
    metrics = metric_names(results)
    metric = next((name for name in metrics if "loss" not in name), metrics[0])
    try:
        return draw_depth_plot({"": results}, metric, folder / _PLOT_STEM)[0].name
    except MissingExtraError as error:
        if plot:
            raise
        _logger.warning("The card says that it has no plot. %s", error)
        return None


def _wants_plot(results: Sequence[SubNetworkResult], plot: str | os.PathLike[str] | bool | None) -> bool:
    return plot is not False and bool(metric_names(results)) and len({result.depth for result in results}) > 1


def _copy_plot(plot: Path, folder: Path) -> str:
    twins = [path for path in (plot.with_suffix(".png"), plot.with_suffix(".svg")) if path.is_file()]
    if not plot.is_file():
        raise CheckpointError(f"The plot {str(plot)!r} does not exist: give a PNG or SVG file, or leave it out.")
    for path in {plot, *twins}:
        shutil.copyfile(path, folder / path.name)
    return plot.name
