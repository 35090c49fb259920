"""Train a model on a task with LayerDrop and measure its sub-networks: one function over Trainer and our callbacks.

Trainer, callbacks and models are imported where they are used, so that the command line can show its help without them.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import is_zipfile

from hf_layerdrop.checkpoints.headers import read_config
from hf_layerdrop.checkpoints.outputs import check_above, check_writable
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended_file import recommended_of
from hf_layerdrop.checkpoints.strangers import LARGEST, Unreadable, read_json
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.errors import CheckpointError, OutputExistsError, UnsupportedModelError, said_by
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import RESULTS_FILE
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.depth_list import Choice
from hf_layerdrop.samplers.keep_layers import KeepLayers, evenly_spread, parse_keep_layers, resolve
from hf_layerdrop.samplers.nested import nested_set
from hf_layerdrop.samplers.schedules import Schedule
from hf_layerdrop.tasks.columns import all_texts
from hf_layerdrop.tasks.task import Task, TaskData
from hf_layerdrop.training.before_first_step import before_first_step, check_arguments
from hf_layerdrop.training.card import measured_on, write_card
from hf_layerdrop.training.from_config import ModelFromConfig
from hf_layerdrop.training.recommend import forget_recommended, note_recommended

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

    from hf_layerdrop.evaluation.ranks import Ranks
    from hf_layerdrop.training.callbacks import DepthEvaluationCallback

T = TypeVar("T", bound=KeepLayers)

LAST = ("last", "true")  # values of resume_from_checkpoint that mean the last complete checkpoint of output_dir
AUTO = "auto"  # the same if there is one, else a new run: what a job needs that is started again by a machine

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class TrainingRun:
    """What `train` leaves behind.

    Attributes:
        trainer: The trainer, holding the trained model.
        results: One record a sub-network that was measured at the end.
        output_dir: Folder of the trained model, its tokenizer and its checkpoints; a plain transformers checkpoint.
        results_file: The records as JSON; they are the checkpoint's recommended sets, too.
        layer_forwards: Layers that ran in training forwards, a batch each: what the run has cost, before a resume too.
        signatures: What sacrebleu says of the settings of its metrics, by name; empty for others.
    """

    trainer: Trainer
    results: list[SubNetworkResult]
    output_dir: Path
    results_file: Path
    layer_forwards: int = 0
    signatures: Mapping[str, str] = field(default_factory=dict)


def train(
    data: TaskData,
    model: str | ModelFromConfig,
    arguments: TrainingArguments,
    *,
    layerdrop: LayerDropConfig | None = None,
    schedule: Schedule | None = None,
    eval_depths: Sequence[KeepLayers] | Callable[[Mapping[str, int]], Sequence[KeepLayers]] | None = None,
    max_length: int | None = None,
    max_target_length: int | None = None,
    strict: bool = False,
    freeze_embeddings: bool = False,
    overwrite: bool = False,
    on_start: Callable[[Trainer, TaskData], None] | None = None,
    build: Callable[..., Trainer] | None = None,
) -> TrainingRun:
    """Train a model on a task with LayerDrop, then measure sub-networks of it without further finetuning.

    Everything that can be wrong with the input is found before the first step.

    Args:
        data: The task and its rows, from `load_task_data`.
        model: A checkpoint folder, a model on the Hub, or from `describe_model` one with random weights.
        arguments: Trainer's settings; those of Seq2SeqTrainer for a task that generates. `resume_from_checkpoint`
            continues a run: a folder, ``"last"`` for the last complete checkpoint of the output folder, or ``"auto"``,
            which starts anew where there is none.
        layerdrop: What is dropped; None takes the rates saved in the checkpoint, or its native ones, or 0.
        schedule: How the rates move over training, from `make_schedule`; None for what the `LayerDropConfig` says.
        eval_depths: The sub-networks to measure, at each evaluation and at the end, or a function that chooses them
            from the depths of the stacks; by default `halved_depths`, nested if those are trained.
        max_length: Inputs of more tokens are cut; None for what is usual for the task.
        max_target_length: The same for texts that are generated.
        strict: Refuse data with inputs that would be cut.
        freeze_embeddings: Leave the token embeddings as they are, which spares time and memory.
        overwrite: Allow an output folder that is not empty; checkpoints in it that the run does not build on are
            removed.
        on_start: Called with the trainer and the encoded data when all is ready, before the first step.
        build: What builds the Trainer in place of that of the task, such as one that trains several depths a step.

    Raises:
        LayerDropError: One of its kinds, if the data, the model, a setting or the output folder is not usable.
    """
    from torch import accelerator

    from hf_layerdrop.models.auto import find_config
    from hf_layerdrop.training.callbacks import (
        DepthEvaluationCallback,
        LayerDropScheduleCallback,
        LayerForwardsCallback,
        StartCallback,
    )
    from hf_layerdrop.training.trainers import build_trainer, positions_of

    output_dir = Path(str(arguments.output_dir))
    checkpoint = check_output(output_dir, overwrite=overwrite, resume=arguments.resume_from_checkpoint)
    check_arguments(arguments, data.task.metrics, data.task.name)
    if isinstance(model, str):  # before its tokenizer, which a model of images has not, and does not lack
        data.task.model_class.class_for(find_config(model, {}), model)
    tokenizer = _tokenizer_for(model, data, checkpoint)
    network = _load_model(data.task, model, tokenizer, _seeded(layerdrop, arguments), arguments.seed)
    _check_model(network, tokenizer, data.task, model)
    encoded = data.task.encode(
        data,
        tokenizer,
        max_length=max_length,
        max_target_length=max_target_length,
        positions=positions_of(network),
        strict=strict,
    )
    if freeze_embeddings:
        network.get_input_embeddings().requires_grad_(False)
    if checkpoint is not None:
        _check_fits(checkpoint, network)
    depths = _checked_depths(eval_depths, network)
    if not accelerator.is_available():
        arguments.dataloader_pin_memory = False  # torch would warn of it at every data loader
    start = StartCallback()
    evaluation = DepthEvaluationCallback(depths)
    callbacks = [evaluation, LayerForwardsCallback(), start]
    if schedule is not None:
        callbacks.insert(0, LayerDropScheduleCallback(schedule))
    with before_first_step(output_dir, lambda: start.begun):
        trainer = build_trainer(encoded, network, tokenizer, arguments, callbacks=callbacks, trainer_class=build)
        if on_start is not None:
            on_start(trainer, encoded)
        _note_data(network, data)
        continue_training(trainer, output_dir, checkpoint)
    writes = trainer.is_world_process_zero()
    if writes:
        forget_recommended(output_dir)  # of other weights
    trainer.save_model()
    trainer.save_state()
    results_file = output_dir / RESULTS_FILE
    keep = partial(keep_records, results_file if writes else None)
    results = measure_depths(trainer, encoded, depths, done=keep, known=_of_the_last_step(trainer, evaluation))
    if writes:
        _write(results, results_file)
        note_recommended(output_dir, results, trainer, encoded)
    # Not the one that was given: Trainer may have made another of it, from a checkpoint.
    count = next(one for one in trainer.callback_handler.callbacks if isinstance(one, LayerForwardsCallback))
    signatures = getattr(trainer.compute_metrics, "signatures", {})
    run = TrainingRun(trainer, results, output_dir, results_file, count.layer_forwards, dict(signatures))
    if writes and not arguments.push_to_hub:  # else there is a card of Trainer's
        name = model if isinstance(model, str) else None
        write_card(output_dir, trainer, encoded, results, base=name, layer_forwards=count.layer_forwards)
    return run


def check_output(output_dir: Path, *, overwrite: bool = False, resume: str | bool | None = None) -> Path | None:
    """Return the checkpoint to continue from, or None for a new run.

    Raises:
        CheckpointError: If there is no such checkpoint.
        OutputExistsError: If the run would write over something.
    """
    wanted = "" if not resume or str(resume).lower() == "false" else str(resume)
    found = _find_checkpoint(output_dir, wanted, overwrite=overwrite) if wanted else None
    check_above(output_dir)
    if output_dir.is_file():
        raise OutputExistsError(f"The output folder {str(output_dir)!r} is a file: give another --output_dir.")
    if found is None and output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise OutputExistsError(
            f"The output folder {str(output_dir)!r} is not empty: give another --output_dir, --overwrite to write into "
            "it, or --resume_from_checkpoint last to continue its run."
        )
    check_writable(output_dir / RESULTS_FILE)  # all that is written may be written at the end
    return found


def halved_depths(depths: Mapping[str, int], choose: Choice = evenly_spread) -> list[KeepLayers]:
    """Choose a few sub-networks that show the whole range: all layers, half of them, ..., one a stack.

    ``choose`` says which layers a depth keeps: those that were trained.
    """
    share = max(depths.values())
    shares = []
    while share:
        shares.append(share)
        share //= 2
    return [_scaled(depths, share, choose) for share in shares]


def _scaled(depths: Mapping[str, int], share: int, choose: Choice) -> dict[str, tuple[int, ...]]:
    """Keep of every stack the share that ``share`` layers are of the largest one."""
    largest = max(depths.values())
    sizes = {stack: max(1, round(depth * share / largest)) for stack, depth in depths.items()}
    return {stack: tuple(choose(sizes[stack], depth)) for stack, depth in depths.items()}


def _checked_depths(eval_depths: Any, model: PreTrainedModel) -> list[KeepLayers]:
    from hf_layerdrop.architectures.stacks import depths_of
    from hf_layerdrop.evaluation.evaluate import listed_depths
    from hf_layerdrop.injection.injected import states_of

    depths = depths_of(model)
    chosen = eval_depths(depths) if callable(eval_depths) else eval_depths
    if chosen is None:
        nested = any(state.config.nested for state in states_of(model).values())
        return possible(halved_depths(depths, nested_set if nested else evenly_spread), model)
    specs = [resolve(spec, depths, partial(recommended_of, model)) for spec in listed_depths(chosen)]
    for spec in specs:
        parse_keep_layers(spec, depths)
    return specs


def possible(specs: Sequence[T], model: PreTrainedModel) -> list[T]:
    """Leave out the sub-networks that nobody has asked for and the model cannot be cut to."""
    from hf_layerdrop.pruning.prune import Cutter

    cutter, found = Cutter(model), []
    for spec in specs:
        with suppress(UnsupportedModelError):
            cutter.check(parse_keep_layers(spec, cutter.depths))
            found.append(spec)
    return found


def _note_data(model: PreTrainedModel, data: TaskData) -> None:
    """Note in the config what the model is measured on: the cards of its sub-networks say so."""
    saved = saved_provenance(model.config)
    model.config.hf_layerdrop = {**saved, "measured_on": measured_on(data)}


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the last checkpoint from which this number of processes can continue as if it had not stopped, or None.

    Trainer writes straight into ``checkpoint-N``, and by itself continues from the highest number, even if the process
    was killed while it wrote it. For a Trainer of your own:
    ``trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))``.
    """
    complete = [folder for folder in _checkpoints(Path(output_dir)) if _is_complete(folder, _processes())]
    return complete[-1] if complete else None


def _is_complete(folder: Path, processes: int) -> bool:
    """Tell a checkpoint that is whole from one that was cut short, or that has no optimizer (``save_only_model``).

    Rank 0 writes weights, optimizer, scheduler and its random state before trainer_state.json; the other ranks write
    their random states meanwhile, and rank 0 does not wait for them.
    """
    expected = {"rng_state.pth"} if processes == 1 else {f"rng_state_{rank}.pth" for rank in range(processes)}
    try:
        state = read_json(folder / "trainer_state.json", LARGEST)
    except Unreadable:
        return False
    return isinstance(state, dict) and all(is_zipfile(folder / name) for name in expected)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _saved_by(folder: Path) -> int:
    """Return how many processes wrote a checkpoint, if it is complete."""
    return len(list(folder.glob("rng_state_*.pth"))) or 1


def _find_checkpoint(output_dir: Path, resume: str, *, overwrite: bool) -> Path | None:
    if resume.lower() in (*LAST, AUTO):
        found = last_complete_checkpoint(output_dir)
        _check_processes(output_dir, found)
        if found is None and resume.lower() != AUTO:
            raise CheckpointError(
                f"There is no complete checkpoint in {str(output_dir)!r}: leave --resume_from_checkpoint out to start "
                "anew."
            )
        return found
    folder = Path(resume)
    if not _is_complete(folder, _saved_by(folder)):
        raise CheckpointError(
            f"There is no complete checkpoint of a training run in {resume!r}: give a checkpoint-N folder, or 'last'."
        )
    _check_nothing_later(output_dir, folder, overwrite)
    return folder


def _check_processes(output_dir: Path, found: Path | None) -> None:
    """Refuse a change of the number of processes that was not asked for: data order and random states are by process.

    With a complete checkpoint at hand, a later one of fewer processes is one that was cut short.
    """
    here = _processes()
    for folder in reversed(_later(output_dir, found)):
        saved_by = _saved_by(folder)
        if saved_by != here and (saved_by > here or found is None) and _is_complete(folder, saved_by):
            raise CheckpointError(
                f"{str(folder)!r} was written by {saved_by} processes and this run has {here}: start as many, or give "
                "--resume_from_checkpoint this folder to continue with other data order."
            )


def _check_nothing_later(output_dir: Path, checkpoint: Path, overwrite: bool) -> None:
    """Refuse to write over complete checkpoints unasked, which Trainer does file by file."""
    later = [folder.name for folder in _later(output_dir, checkpoint) if _is_complete(folder, _saved_by(folder))]
    if later and not overwrite:
        raise OutputExistsError(
            f"{str(output_dir)!r} holds {later[-1]}, which a run from {str(checkpoint)!r} would write over: continue "
            "from 'last', give another --output_dir, or --overwrite to remove it."
        )


def _later(output_dir: Path, checkpoint: Path | None) -> list[Path]:
    """List the checkpoints that a run would write over: all after the one that it continues."""
    folders = _checkpoints(output_dir)
    number = next((place for place, folder in enumerate(folders, 1) if _same(folder, checkpoint)), 0)
    return folders[number:]


def _same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _checkpoints(output_dir: Path) -> list[Path]:
    """List Trainer's checkpoints in the order of their steps."""
    matches = [
        (match, folder) for folder in output_dir.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(folder.name))
    ]
    return [folder for match, folder in sorted(matches, key=lambda pair: int(pair[0][1]))]


def continue_training(trainer: Trainer, output_dir: Path, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the start.

    What would be taken for a later checkpoint of this run, or be mixed with one, is removed before; other files stay.
    """
    if trainer.is_world_process_zero():
        for folder in _later(output_dir, checkpoint):
            shutil.rmtree(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _check_fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuse a checkpoint of another depth: Trainer would load the layers that fit, and warn."""
    from hf_layerdrop.architectures.stacks import find_stacks

    config = read_config(checkpoint)
    for name, stack in find_stacks(model).items():
        depth = config.get(stack.depth_field, stack.depth)
        if depth != stack.depth:
            raise CheckpointError(
                f"The {name} has {depth} layers in {str(checkpoint)!r}, but {stack.depth} in the model that is to be "
                "trained: continue with the model that the run began with."
            )


def _tokenizer_for(model: str | ModelFromConfig, data: TaskData, checkpoint: Path | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer; for a model without a checkpoint, train one on its data, or go on with that of the run."""
    if isinstance(model, str):
        return load_tokenizer(model)
    if checkpoint is not None:
        return load_tokenizer(str(checkpoint))
    if model.tokenizer is not None:
        return load_tokenizer(model.tokenizer)
    if data.train is None:
        raise CheckpointError(
            f"{model.name!r} needs training rows to train its tokenizer on: give them, or a tokenizer."
        )
    return model.make_tokenizer(all_texts(data.train))


def _load_model(
    task: Task,
    model: str | ModelFromConfig,
    tokenizer: PreTrainedTokenizerBase,
    layerdrop: LayerDropConfig | None,
    seed: int,
) -> PreTrainedModel:
    from transformers import set_seed

    set_seed(seed)  # a new head, or all of the model, is drawn at random
    settings = task.kind.settings(task)
    if isinstance(model, ModelFromConfig):
        return task.model_class.from_config(model.make_config(tokenizer, **settings), layerdrop=layerdrop)
    # The head of another task is replaced, with a warning of transformers.
    return task.model_class.from_pretrained(model, layerdrop=layerdrop, ignore_mismatched_sizes=True, **settings)


def _check_model(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, model: str | ModelFromConfig
) -> None:
    from hf_layerdrop.training.trainers import check_causal, check_vocabulary

    name = model if isinstance(model, str) else model.name
    check_vocabulary(network, tokenizer, name)
    if task.head == "CausalLM":
        check_causal(network, name)


def _seeded(layerdrop: LayerDropConfig | None, arguments: TrainingArguments) -> LayerDropConfig | None:
    """Take the seed of the run where LayerDrop has none of its own."""
    if layerdrop is None or layerdrop.seed is not None:
        return layerdrop
    return replace(layerdrop, seed=arguments.seed)


def measure_depths(
    trainer: Trainer,
    data: TaskData,
    depths: Sequence[KeepLayers],
    *,
    done: Callable[[list[SubNetworkResult]], None] | None = None,
    known: Sequence[SubNetworkResult] = (),
    ranks: Ranks | None = None,
) -> list[SubNetworkResult]:
    """Measure on every validation set; the metrics of the second one (MNLI) join the first's under their suffix.

    All processes hand all records so far to ``done``, each time that there are more. ``known`` are the records of the
    first set where they are measured already. Trainer divides batches among the processes, unless ``ranks`` are given,
    which divide the sub-networks.
    """
    from hf_layerdrop.evaluation.evaluate import Evaluator
    from hf_layerdrop.evaluation.ranks import ALONE

    sets = [[*known]] if known else []
    for rows in list(data.validation.values())[len(sets) :]:
        evaluator = Evaluator(trainer, rows, ranks=ranks or ALONE)
        kept = [evaluator.cutter.parse(spec) for spec in depths]
        of_first = None if sets else done
        sets.append(evaluator.measure(kept, progress=not trainer.args.disable_tqdm, done=of_first))
        if done is not None:
            done(_joined_sets(sets, data.task.metric_suffixes))
    return _joined_sets(sets, data.task.metric_suffixes)


def _of_the_last_step(trainer: Trainer, evaluation: DepthEvaluationCallback) -> Sequence[SubNetworkResult]:
    """Return what the last evaluation measured, if the model still has the weights that it had then."""
    step, results = evaluation.results.get("eval", (None, ()))
    state = trainer.state
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    return results if step == state.global_step and best in (None, step) else ()


def keep_records(path: Path | None, results: Sequence[SubNetworkResult]) -> None:
    """Write the records that there are so far; where that fails, the measuring goes on, and a warning says so."""
    try:
        if path is not None:
            _write(results, path)
    except OSError as error:
        warnings.warn(f"{str(path)!r} could not be written ({said_by(error)}).", stacklevel=2)


def _joined_sets(sets: Sequence[Sequence[SubNetworkResult]], suffixes: Sequence[str]) -> list[SubNetworkResult]:
    return [_joined(same, suffixes) for same in zip(*sets, strict=True)]


def _joined(same: Sequence[SubNetworkResult], suffixes: Sequence[str]) -> SubNetworkResult:
    by_set = [*zip(same, suffixes, strict=False)]

    def named(field: str) -> dict[str, Any]:
        return {f"{name}{suffix}": value for one, suffix in by_set for name, value in getattr(one, field).items()}

    return replace(same[0], metrics=named("metrics"), rows=named("rows"), intervals=named("intervals"))


def _write(results: Sequence[SubNetworkResult], path: Path) -> None:
    from hf_layerdrop.results.table import write_results

    write_results(results, path)
