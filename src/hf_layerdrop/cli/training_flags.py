"""The flags of TrainingArguments: transformers' own parser reads them, and what is refused becomes one line.

Transformers is imported where it is used, since its import takes seconds and help is to come at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hf_layerdrop.errors import TrainingArgumentsError, said_by

if TYPE_CHECKING:
    from transformers import HfArgumentParser, TrainingArguments

# Where finetuning differs from TrainingArguments' own defaults.
DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "learning_rate": 2e-5,
    "eval_strategy": "epoch",
    "save_total_limit": 2,
}

_AS_EVALUATED = {"save_strategy": "eval_strategy", "save_steps": "eval_steps"}
_SEE = "train --help-all lists all flags of TrainingArguments"


def _show_all_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from transformers import TrainingArguments

        saves = {save: f"as {evaluate}" for save, evaluate in _AS_EVALUATED.items()}
        flags = _parser(TrainingArguments, {**DEFAULTS, **saves}).format_help().partition("options:")[2]
        typer.echo(f"{context.get_help()}\nFlags of TrainingArguments:{flags}")
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option("--help-all", callback=_show_all_help, is_eager=True, help="Show TrainingArguments' flags too."),
]


def parse_training_arguments(
    words: Sequence[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    options: Iterable[str] = (),
    generates: bool = False,
) -> TrainingArguments:
    """Build TrainingArguments; checkpoints are written when the model is evaluated, unless a flag says otherwise.

    Args:
        words: Flags and values, as on the command line; of a flag that is given twice the later one wins.
        defaults: Values of fields that no word sets.
        options: Names of our own options, to name the nearest of both.
        generates: Return those of a Seq2SeqTrainer.

    Raises:
        TrainingArgumentsError: If a flag is unknown, or the parser or TrainingArguments itself refuses a value.
    """
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    kind = Seq2SeqTrainingArguments if generates else TrainingArguments
    parser = _parser(kind, {**(defaults or {}), **dict.fromkeys(_AS_EVALUATED)})  # None: no word has set it
    values, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(unknown[0], [*(field.name for field in fields(kind)), *options])
    try:
        (arguments,) = parser.parse_dict(_with_saves(vars(values)))
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        raise TrainingArgumentsError(f"TrainingArguments refuses its values: {said_by(error)}; {_SEE}.") from error
    return arguments


def config_words(values: Mapping[str, Any]) -> list[str]:
    """Write the entries of a config file as the command line has them."""
    words = []
    for name, value in values.items():
        items = [_as_word(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
        # Joined by "=", a value may itself begin with a dash.
        words.extend([f"--{name}={items[0]}"] if len(items) == 1 else [f"--{name}", *items] if items else [])
    return words


def option_names(context: typer.Context) -> list[str]:
    """Return our own options of a command, without their dashes."""
    return [str(option.name).replace("_", "-") for option in context.command.params]


def _as_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _parser(kind: type[TrainingArguments], defaults: Mapping[str, Any]) -> HfArgumentParser:
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    class Parser(HfArgumentParser):
        def add_argument(self, *names: Any, **settings: Any) -> Any:
            if settings.get("type") is string_to_bool:  # transformers wants a value where a true-or-false may be None
                settings = {"nargs": "?", "const": True, **settings}
            if names[0] == "--resume_from_checkpoint":
                settings |= {"nargs": "?", "const": "last"}
            return super().add_argument(*names, **settings)

        def error(self, message: str) -> NoReturn:
            said = message[:1].upper() + message[1:].rstrip(".")
            raise TrainingArgumentsError(f"{said}; {_SEE}.")

    parser = Parser(kind, prog="hf-layerdrop train", add_help=False, usage=" ", allow_abbrev=False)
    parser.set_defaults(**defaults)
    return parser


def _with_saves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Save when the model is evaluated, where nothing else is said: load_best_model_at_end wants them to agree."""
    said = {name: value for name, value in values.items() if value is not None or name not in _AS_EVALUATED}
    evaluating = {save: values[evaluate] for save, evaluate in _AS_EVALUATED.items()}
    as_evaluated = {save: value for save, value in evaluating.items() if value not in (None, "no")}
    return {"save_strategy": "epoch", **as_evaluated, **said}


def _refuse(word: str, known: Sequence[str]) -> NoReturn:
    """Refuse a word that belongs to no flag, and name the nearest."""
    if not word.startswith("-"):
        raise TrainingArgumentsError(f"{word!r} belongs to no option: options start with --, such as --task sst2.")
    written = word.partition("=")[0]
    spelled = {name.replace("-", "_"): f"--{name}" for name in known}
    nearest = difflib.get_close_matches(written.lstrip("-").replace("-", "_"), spelled, n=1, cutoff=0.5)
    hint = f"did you mean {spelled[nearest[0]]}?" if nearest else f"{_SEE}."
    raise TrainingArgumentsError(f"Unknown option {written}, on the command line or as a key of --config; {hint}")
