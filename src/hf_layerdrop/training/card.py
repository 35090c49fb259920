"""The card of a trained checkpoint: what it was trained from and on, what each depth scores, how to use it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.card_metadata import CARD, said_of
from hf_layerdrop.errors import said_by
from hf_layerdrop.reports.card import CardInfo, MeasuredOn, render_card
from hf_layerdrop.reports.card_facts import made_with, task_of
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.recommend import machine_of

if TYPE_CHECKING:
    from transformers import Trainer


def write_card(
    folder: Path,
    trainer: Trainer,
    data: TaskData,
    results: Sequence[SubNetworkResult],
    *,
    base: str | None,
    layer_forwards: int,
) -> None:
    """Write the card of a checkpoint that was just trained; where that fails, a warning says so.

    Args:
        folder: The checkpoint.
        trainer: What trained it.
        data: The encoded data.
        results: What its depths score.
        base: The checkpoint that it was trained from; None for random weights.
        layer_forwards: What the training cost.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.config.to_dict()
    tag, served = task_of(config)
    on = MeasuredOn(**measured_on(data))
    rows = f"{len(data.train):,} rows" if data.train is not None else "rows"
    steps = f"{trainer.state.global_step:,} steps, {layer_forwards:,} layer forwards"
    info = CardInfo(
        name=folder.resolve().name,
        source=base,
        pipeline_tag=tag,
        served=served,
        inherited=_inherited(base),
        measured_on=on,
        trained_on=f"{rows} of {' '.join(filter(None, (on.dataset, on.config)))}: {steps}",
        machine=machine_of(trainer),
        made_with=made_with(),
    )
    card = render_card(config, info, parameters=model.num_parameters(), results=results)
    try:
        card.save(folder / CARD)
    except OSError as error:
        warnings.warn(f"{str(folder / CARD)!r} could not be written ({said_by(error)}).", stacklevel=2)


def _inherited(base: str | None) -> dict[str, Any]:
    """Return what the card of the base model says, but for its data: others were trained on."""
    said = {} if base is None else said_of(base)
    return {name: value for name, value in said.items() if name != "datasets"}


def measured_on(data: TaskData) -> dict[str, Any]:
    """Name validation data as `MeasuredOn` does; nobody shall take local rows for the data set of the Hub."""
    task = data.task
    local = {"dataset": f"local-{task.name}"}
    folder = task.hub_name is not None and Path(task.hub_name).is_dir()  # whose path is nobody's business
    hub_name = Path(task.hub_name).resolve().name if task.hub_name and folder else task.hub_name
    named = {"dataset": hub_name, "config": task.hub_config} if hub_name else local
    split, *more = data.validation
    marked = dict(zip(task.metric_suffixes[1:], more, strict=False))
    return {**named, "split": split, **({"more_splits": marked} if marked else {})}
