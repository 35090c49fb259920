"""The flags of TrainingArguments, known and checked without importing torch: read from the source of transformers."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from hf_layerdrop.cli.training_values import check_values, source_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

Flags = dict[str, list[str]]  # name of a field -> its values, as words

_VALUE_WHEN_BARE = {"resume_from_checkpoint": ["last"]}
_NUMBER = re.compile(r"-?\.?\d.*")


@cache
def training_fields() -> dict[str, str]:
    """Return the annotation of every field of TrainingArguments, as its source writes it."""
    source = source_of("training_args")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == "TrainingArguments")
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def read_flags(words: Sequence[str], *, options: Iterable[str]) -> Flags:
    """Sort the words that are not our own options into flags of TrainingArguments, and check them.

    Args:
        words: The rest of the command line. ``--learning_rate`` and ``--learning-rate`` are the same.
        options: Names of our own options, to name the nearest of both.

    Raises:
        typer.BadParameter: If a flag is unknown, or its value is none that it takes; see `check_values`.
    """
    flags: Flags = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("-") and not _NUMBER.fullmatch(word):
            written, has_value, value = word.partition("=")
            name, is_negated = _field(written, options)
            current = ["false"] if is_negated else [value] if has_value else []
            flags[name] = current
        elif current is None:
            raise typer.BadParameter(f"{word!r} belongs to no option: options start with --, such as --task sst2")
        else:
            current.append(word)
    flags = {name: values or _when_bare(name) for name, values in flags.items()}
    for name, values in flags.items():
        check_values(name, values, training_fields()[name])
    return flags


def config_flags(values: Mapping[str, Any], *, options: Iterable[str]) -> Flags:
    """Turn the entries of a config file for TrainingArguments into the flags that say the same, and check them.

    Raises:
        typer.BadParameter: If a key is neither a field nor one of our options, or its value is none that it takes.
    """
    known = training_fields()
    flags = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            _unknown(f"Unknown key {key!r} in the config file", name, options)
        if value is not None:
            flags[name] = [_as_word(item) for item in (value if isinstance(value, list) else [value])]
            check_values(name, flags[name], known[name])
    return flags


def parse_training_arguments(flags: Mapping[str, Sequence[str]], *, generates: bool = False) -> TrainingArguments:
    """Build TrainingArguments by transformers' own parser; with ``generates`` those of a Seq2SeqTrainer.

    Raises:
        typer.BadParameter: If the parser or TrainingArguments itself refuses a value.
    """
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise typer.BadParameter(message)

    words = [word for name, values in flags.items() for word in _spelled(name, values)]
    try:
        kind = Seq2SeqTrainingArguments if generates else TrainingArguments
        (arguments,) = Parser(kind).parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, ImportError, OSError) as error:
        raise typer.BadParameter(f"TrainingArguments refuses its values: {' '.join(str(error).split())}") from error
    return arguments


def training_help() -> str:
    """Describe every flag of TrainingArguments, as transformers' own parser does."""
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(TrainingArguments, prog="hf-layerdrop train", add_help=False, usage=" ")
    return parser.format_help().partition("options:")[2]


def _when_bare(name: str) -> list[str]:
    """Say what a flag means without a value; transformers' own parser wants one where a true-or-false may be None."""
    return ["true"] if training_fields()[name].startswith("bool") else _VALUE_WHEN_BARE.get(name, [])


def _field(written: str, options: Iterable[str]) -> tuple[str, bool]:
    """Return the field that a flag sets, and whether it is the ``--no_`` form of a true-or-false one."""
    name = written.lstrip("-").replace("-", "_")
    positive = name.removeprefix("no_")
    if name in training_fields():
        return name, False
    if training_fields().get(positive, "").startswith("bool"):
        return positive, True
    _unknown(f"Unknown option {written}", name, options)


def _unknown(what: str, name: str, options: Iterable[str]) -> NoReturn:
    spelled = {field: f"--{field}" for field in training_fields()}
    spelled.update({option.replace("-", "_"): f"--{option}" for option in options})
    nearest = difflib.get_close_matches(name, spelled, n=1, cutoff=0.5)
    hint = f"did you mean {spelled[nearest[0]]}" if nearest else "--help-all lists all that there are"
    raise typer.BadParameter(f"{what}; {hint}")


def _spelled(name: str, values: Sequence[str]) -> list[str]:
    # Joined by "=", a value may itself begin with a dash.
    return [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]


def _as_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)
