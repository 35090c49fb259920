"""hf-layerdrop train: train on a task with LayerDrop, and end with the table of quality against depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.checkpoints.strangers import Unreadable, admitting, read_yaml
from hf_layerdrop.checkpoints.tokenizers import DEFAULT_SIZE
from hf_layerdrop.cli.arguments import (
    DatasetConfig,
    DatasetName,
    LabelColumn,
    MaxLength,
    MaxTargetLength,
    NumBeams,
    TaskName,
    TextColumns,
    TrainFile,
    ValidationFiles,
    checkpoint_facts,
    listed,
    require_tokenizer,
)
from hf_layerdrop.cli.console import PlainConsole, drawn, print_next
from hf_layerdrop.cli.depths import check_once, depths_of_step, no_other_drop, parse_depths
from hf_layerdrop.cli.reports import print_signatures
from hf_layerdrop.cli.training_flags import DEFAULTS, HelpAll, config_words, option_names, parse_training_arguments
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.results.table import measured_rows, render_table
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.config_values import GRANULARITIES, SAMPLERS, SCALES, STRUCTURES
from hf_layerdrop.samplers.keep_layers import KeepLayers, evenly_spread
from hf_layerdrop.samplers.schedules import SCHEDULES, SHAPES, Schedule, read_schedule
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import custom_task, load_task, with_dataset
from hf_layerdrop.tasks.task import Task, TaskData
from hf_layerdrop.training.from_config import POSITIONS, ModelFromConfig, describe_model, names_model
from hf_layerdrop.training.train import TrainingRun, check_output, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from hf_layerdrop.checkpoints.recommended import RecommendedSets

# TrainingArguments where all weights begin at random.
FROM_SCRATCH = {"learning_rate": 5e-4, "warmup_steps": 0.05}

PRESETS: Mapping[str, Callable[..., LayerDropConfig]] = {"pretraining": LayerDropConfig.for_pretraining}
_USUAL = {"sampler": "bernoulli", "granularity": "batch"}
_SAMPLES = 1000  # points at which a schedule is averaged for the table of rates
_CONFIG = "hf_layerdrop.config_words"  # key of the context's notes, for what --config says of TrainingArguments


def _read_config(context: typer.Context, given: list[str] | None) -> list[str] | None:
    """Make a config file's values the defaults of our options, and note those of TrainingArguments.

    What names a model with random weights is left as it is.
    """
    models = [text for text in given or () if names_model(text)]
    files = [text for text in given or () if text not in models]
    if len(models) > 1 or len(files) > 1:
        raise typer.BadParameter(
            f"--config is {', '.join(given or ())}; give one file of options and one model at most"
        )
    return models + [model for file in files for model in _read_options(context, Path(file))]


def _read_options(context: typer.Context, path: Path) -> list[str]:
    """Read a file of options; return the model that it names under ``config``, if any."""
    options = {str(option.name): option for option in context.command.params}
    values = _load_mapping(path)
    ours = {key: value for key, value in values.items() if str(key).replace("-", "_") in options}
    with admitting(lambda reason: typer.BadParameter(_no_options(path, reason))):
        context.default_map = {
            str(key).replace("-", "_"): _option_value(value, multiple=options[str(key).replace("-", "_")].multiple)
            for key, value in ours.items()
        }
        context.meta[_CONFIG] = config_words({str(key): value for key, value in values.items() if key not in ours})
    named = ours.get("config")
    return [] if named is None else [str(named)]


def train_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A checkpoint folder, or the id of a model on the Hub. For random weights give --config instead.",
            show_default=False,
        ),
    ] = None,
    task: TaskName = None,
    train_file: TrainFile = None,
    validation_file: ValidationFiles = None,
    dataset: DatasetName = None,
    dataset_config: DatasetConfig = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    layerdrop: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Chance that a layer is skipped in a training step: 0.2; one a layer: 0,0.1,0.2; by stack: "
            "'encoder=0.2;decoder=0.1'. Left out: what the checkpoint says, else 0.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What else is said of LayerDrop: pretraining (arXiv 2609.05275; --layerdrop is its largest rate). "
            "Options beside it win.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Rates over depth: {', '.join(SHAPES)}.", show_default="uniform"),
    ] = None,
    sampler: Annotated[str, typer.Option(metavar="NAME", help=f"Draws: {', '.join(SAMPLERS)}.")] = "bernoulli",
    nested: Annotated[
        bool,
        typer.Option("--nested", help="With --sampler depth: sets that lie in each other, --keep-layers nested:6."),
    ] = False,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"What a layer that runs adds: {', '.join(SCALES)} (divided by its chance to run; pre-norm models).",
            show_default="none",
        ),
    ] = None,
    structure: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help=f"What is dropped as one: {', '.join(STRUCTURES)}.")
    ] = "layer",
    granularity: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"What drops its own layers: {' or '.join(GRANULARITIES)}."),
    ] = "batch",
    never_drop: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Layers that always run, such as 0,-1; by stack: encoder=0;decoder=-1.",
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Depths to train together, in place of a rate: 12,6,4,3; of stacks: 'encoder=6,3;decoder=6,3'.",
            show_default=False,
        ),
    ] = None,
    depths_per_step: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --depths: how many of them a step trains. From 2 on the whole model and the shallowest are "
            "always among them, and what is shallower learns from the whole model, too.",
            show_default="1",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:NUMBERS]",
            help=f"Rates over training: {', '.join(SCHEDULES)}; with numbers: linear:start=0,end=0.5, step:at=0.3, "
            "pld:theta=0.5,gamma=10 (which scales rates of 1).",
            show_default="constant",
        ),
    ] = None,
    eval_depths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Depths to measure at each evaluation and at the end: 6,3,1, or all; of one stack: decoder=6,3.",
            show_default="those of --depths, else the full depth, halved down to 1",
        ),
    ] = None,
    freeze_embeddings: Annotated[
        bool, typer.Option("--freeze-embeddings", help="Leave the token embeddings as they are: faster.")
    ] = False,
    max_length: MaxLength = None,
    max_target_length: MaxTargetLength = None,
    num_beams: NumBeams = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse inputs that would be cut.")] = False,
    vocab_size: Annotated[
        int, typer.Option(min=1, help="Most tokens of the tokenizer that is trained with --config.")
    ] = DEFAULT_SIZE,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --config: a tokenizer to take instead.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into --output_dir though it is in use.")
    ] = False,
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="YAML or JSON with any of these options and any of TrainingArguments; the command line wins. Or a "
            "model with random weights: tiny-12x128 (depth x width), llama-6x64, bart-6+3x64, or its config.json.",
            callback=_read_config,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
    help_all: HelpAll = False,
) -> None:
    """Train MODEL with LayerDrop on a task, then measure its sub-networks without further finetuning.

    Every flag of TrainingArguments works too: --output_dir, --learning_rate, --max_steps, --bf16, ... (see --help-all).
    """
    columns = listed(text_columns)
    chosen = load_task(task) if task else custom_task(columns, label_column=label_column or "label")
    chosen = with_dataset(chosen, dataset, dataset_config)
    drop = _layerdrop(
        layerdrop,
        preset,
        never_drop,
        structure,
        shape=shape,
        sampler=sampler,
        nested=nested,
        scale=scale,
        granularity=granularity,
        schedule=None if preset is None else schedule,
        depths=depths,
    )
    together = depths_of_step(depths, depths_per_step)
    if depths is not None:
        drop = no_other_drop(drop, schedule)
    factor = None if schedule is None else read_schedule(schedule)
    start = _start(model, config, chosen, max(max_length or 0, max_target_length or 0), vocab_size, tokenizer)
    measured = _checked_model(start, drop, eval_depths or depths)
    trained = None if depths is None else _checked_model(start, drop, depths)
    if isinstance(trained, list):
        check_once(trained)
    name = _name(start)
    defaults = {**DEFAULTS, **(FROM_SCRATCH if model is None else {}), "output_dir": f"runs/{chosen.name}-{name}"}
    arguments = parse_training_arguments(
        [*context.meta.get(_CONFIG, []), *context.args],
        defaults=defaults,
        options=option_names(context),
        generates=chosen.generation is not None,
    )
    check_output(Path(str(arguments.output_dir)), overwrite=overwrite, resume=arguments.resume_from_checkpoint)

    from hf_layerdrop.distillation.depths.of_tasks import depth_trainer_for
    from hf_layerdrop.training.trainers import generation_flags

    for field, value in generation_flags(chosen, max_target_length, num_beams).items():
        setattr(arguments, field, value)
    data = load_task_data(
        chosen,
        train_file=train_file,
        validation_file=validation_file,
        text_columns=columns,
        label_column=label_column,
    )
    console = PlainConsole()
    run = train(
        data,
        start,
        arguments,
        layerdrop=drop,
        schedule=factor,
        eval_depths=measured,
        max_length=max_length,
        max_target_length=max_target_length,
        strict=strict,
        freeze_embeddings=freeze_embeddings,
        overwrite=overwrite,
        on_start=lambda trainer, encoded: _print_start(console, trainer, encoded, schedule),
        build=None if trained is None else depth_trainer_for(chosen, trained, **together),
    )
    if run.trainer.is_world_process_zero():
        measured = ", ".join(filter(None, (f"{name} on {data.task.name}", measured_rows(run.results))))
        console.print(render_table(run.results, title=f"{measured}, cut without finetuning"))
        _print_cost(console, run)
        _write_learned(console, run)
        console.print(f"Wrote {run.output_dir}", soft_wrap=True)
        print_next(console, "sweep", run.output_dir)


def _start(
    model: str | None, config: list[str] | None, task: Task, length: int, vocab_size: int, tokenizer: str | None
) -> str | ModelFromConfig:
    """Return the checkpoint, or what is needed to begin with random weights."""
    if (model is None) == (not config):
        raise typer.BadParameter(
            "Missing option '--model', or --config with the name of a model, such as --config tiny-12x128"
            if model is None
            else f"--model {model} and --config {(config or [''])[0]} are two models; give one"
        )
    if model is not None:
        return model
    assert config
    positions = max(POSITIONS, length, task.max_length)
    return describe_model(config[0], task.head, positions=positions, vocab_size=vocab_size, tokenizer=tokenizer)


def _name(start: str | ModelFromConfig) -> str:
    return Path(start).name if isinstance(start, str) else start.name


def _layerdrop(
    rate: str | None,
    preset: str | None,
    never_drop: str | None,
    structure: str,
    *,
    depths: str | None = None,
    **settings: Any,
) -> LayerDropConfig | None:
    if preset is not None and preset not in PRESETS:
        raise LayerDropConfigError(f"--preset is {preset!r}; it must be {' or '.join(PRESETS)}.")
    given = {name: value for name, value in settings.items() if value not in (None, False, _USUAL.get(name))}
    if rate is None:
        if given or preset or never_drop or structure != "layer":
            flags = "--preset, --shape, --sampler, --nested, --scale, --structure, --granularity and --never-drop"
            raise LayerDropConfigError(
                f"{flags} need a rate; give --layerdrop too, such as 0.2."
                if depths is None
                else f"--depths draws nothing, which {flags} are for: leave them out. Nested sets are listed as in "
                "--depths nested:6,nested:3."
            )
        return None
    structures = [name.strip() for name in structure.split(",")]
    make = PRESETS[preset] if preset else LayerDropConfig
    return make(_rate(rate), never_drop=_layers(never_drop), structure=structures, **given)


def _rate(text: str, whole: str | None = None) -> Any:
    """Read a rate, or those of several stacks; ``whole`` is the text that the rate of one stack is a part of."""
    if "=" in text and whole is None:
        parts = [part.partition("=") for part in text.split(";") if part.strip()]
        stacks = [stack.strip() for stack, _, _ in parts]
        for stack in stacks:
            if stacks.count(stack) > 1:
                raise LayerDropConfigError(
                    f"--layerdrop {text!r} names the stack {stack!r} {stacks.count(stack)} times: give it one rate."
                )
        return {stack: _rate(rate, text) for stack, (_, _, rate) in zip(stacks, parts, strict=True)}
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise LayerDropConfigError(
            f"--layerdrop is {(whole or text)!r}; give a number such as 0.2, one a layer (0,0.1,0.2), or both by stack "
            "('encoder=0.2;decoder=0.1')."
        ) from None
    return numbers if "," in text else numbers[0]


def _layers(text: str | None) -> list[int] | dict[str, list[int]]:
    """Read layer indices, or those of several stacks."""
    if not text:
        return []
    try:
        if "=" not in text:
            return [int(part) for part in text.split(",")]
        stacks = [part.partition("=") for part in text.split(";")]
        layers = {stack.strip(): [int(part) for part in listed.split(",")] for stack, _, listed in stacks}
        if len(layers) < len(stacks):
            raise ValueError(text)
    except ValueError:
        raise LayerDropConfigError(
            f"--never-drop is {text!r}; give layer indices such as 0,-1, or those of each stack once: "
            "'encoder=0;decoder=0,-1'."
        ) from None
    return layers


def _checked_model(start: str | ModelFromConfig, layerdrop: LayerDropConfig | None, eval_depths: str | None) -> Any:
    """Check the rates and depths against the stacks that the model's headers show; one without is checked later."""
    wanted = None if eval_depths is None else eval_depths.removesuffix("-depths")
    if isinstance(start, ModelFromConfig):
        return None if wanted is None else partial(_depths_of, wanted)
    config, stacks = checkpoint_facts(start, revision=None, allow_pickle=False)
    if layerdrop is not None:
        layerdrop.rates_for(stacks)
    require_tokenizer(start, config)
    return None if wanted is None else _depths_of(wanted, stacks, partial(read_recommended, start))


def _depths_of(
    wanted: str, stacks: Mapping[str, int], recommended: Callable[[], RecommendedSets] | None = None
) -> list[KeepLayers]:
    return list(parse_depths(wanted, stacks, recommended))


def _load_mapping(path: Path) -> Mapping[str, Any]:
    try:
        values = read_yaml(path)
    except Unreadable as error:
        raise typer.BadParameter(_no_options(path, str(error))) from error
    if not isinstance(values, Mapping):
        raise typer.BadParameter(
            f"The config file {str(path)!r} must hold keys and values, such as 'learning_rate: 2e-5'"
        )
    return values


def _no_options(path: Path, reason: str) -> str:
    return f"The config file {str(path)!r} cannot be read: {reason}"


def _option_value(value: Any, *, multiple: bool) -> Any:
    """Write a value of a config file as the command line would."""
    if multiple:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, Mapping):
        return ";".join(f"{key}={_option_value(item, multiple=False)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return value if value is None or isinstance(value, bool) else str(value)


def _print_start(console: Console, trainer: Trainer, data: TaskData, schedule: str | None) -> None:
    from hf_layerdrop.injection.inject import layerdrop_state

    if not trainer.is_world_process_zero():
        return
    if (plan := getattr(trainer, "depth_plan", None)) is not None:
        console.print(f"Each step trains {plan.in_words}.", soft_wrap=True)
    else:
        name = schedule or getattr(layerdrop_state(trainer.model), "config", LayerDropConfig()).schedule or "constant"
        console.print(_rates_table(trainer.model, read_schedule(name), title=f"LayerDrop, schedule {name}"))
    for cut in data.cuts:
        console.print(f"{cut}, and were cut.")


def _print_cost(console: Console, run: TrainingRun) -> None:
    """Say what the training cost, by which runs are compared, and how the metrics are defined."""
    steps = run.trainer.state.global_step
    console.print(f"{run.layer_forwards:,} layer forwards in {steps:,} steps of training.")
    print_signatures(console, run.signatures)


def _write_learned(console: Console, run: TrainingRun) -> None:
    """Write learned rates as a picture, and for each measured depth the layers that they keep; nothing for others."""
    from hf_layerdrop.evaluation.evaluate import depth_name
    from hf_layerdrop.injection.inject import layerdrop_state
    from hf_layerdrop.results.plot import draw_rates_plot
    from hf_layerdrop.search.learned_rates import write_learned_selection

    model = run.trainer.model
    rates = layerdrop_state(model).learned().get("learned_rates")
    if rates is None:
        return
    files = []
    depths = {stack: len(values) for stack, values in rates.items()}
    try:
        for result in run.results:
            wanted = {stack: len(kept) for stack, kept in result.keep_layers.items()}
            name = depth_name({stack: evenly_spread(depth, depths[stack]) for stack, depth in wanted.items()}, depths)
            if wanted != depths:
                file = run.output_dir / f"learned_{name}.json"
                files.append(write_learned_selection(model, wanted, file, overwrite=True))
    except LayerDropConfigError as error:  # the run was too short to learn anything
        console.print(str(error), soft_wrap=True)
    picture = run.output_dir / "learned_rates"
    files = [*drawn(console, lambda: draw_rates_plot(rates, picture, title="Learned drop rates")), *files]
    names = ", ".join(file.name for file in files)
    console.print(f"Learned rates, and layers for --keep-layers: {names}", soft_wrap=True)


def _rates_table(model: PreTrainedModel, schedule: Schedule, *, title: str) -> Table:
    """Show the rate of each layer, and how many layers a training step runs on average over the training."""
    from hf_layerdrop.injection.inject import layerdrop_state

    table = Table(title=title, title_justify="left")
    for column in ("stack", "layers", "rates at the start", "rates at the end", "layers used on average"):
        table.add_column(column)
    mean_factor = sum(schedule(step / _SAMPLES) for step in range(_SAMPLES)) / _SAMPLES
    for stack, draw in layerdrop_state(model).draws.items():
        start, end = ([rate * schedule(progress) for rate in draw.rates] for progress in (0.0, 1.0))
        used = draw.depth - (draw.depth - draw.mean_kept) * mean_factor
        at_the_end = _listed(end) if draw.learner is None else f"learned, {sum(end) / draw.depth:.3g} on average"
        table.add_row(stack, str(draw.depth), _listed(start), at_the_end, f"{used:.3g}")
    return table


def _listed(rates: Sequence[float]) -> str:
    return f"{rates[0]:.3g} each" if len(set(rates)) == 1 else " ".join(f"{rate:.3g}" for rate in rates)
