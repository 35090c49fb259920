"""hf-layerdrop run: a file of steps, each a command of this program, that goes on where it was interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_layerdrop.checkpoints.journal import Journal, Record, reading_records
from hf_layerdrop.checkpoints.strangers import Unreadable, read_yaml
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.cli.errors import WRONG_INPUT

COMMANDS = ("train", "sweep", "search", "prune", "push", "inspect")
TAKES_MODEL_FIRST = COMMANDS[1:]
# What a step needs that was begun before and not finished: it must neither stop at its own traces nor begin anew.
AGAIN = {
    "train": ["--resume_from_checkpoint", "auto", "--overwrite"],
    "sweep": ["--overwrite"],
    "search": ["--overwrite"],
    "prune": ["--overwrite"],
}
BEGUN, DONE, REFUSED = "begun", "done", "refused"

Step = list[str]
_KIND = "a recipe"
_SHOWN = 200  # characters of a step


def run_command(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The steps; see the documentation of tasks.")],
    again: Annotated[bool, typer.Option("--again", help="Run all steps anew, also those that are done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the commands.")] = False,
) -> None:
    """Run the steps of a recipe one after the other; what is done is noted beside it and not run again.

    A step is a command line ("prune runs/mlm --keep-layers 6 --output runs/small") or its name with its options
    ("prune: {model: runs/mlm, keep-layers: 6, output: runs/small}"). Paths are relative to where the program is run.
    """
    steps = read_recipe(recipe)
    journal = StepJournal(recipe.with_name(f"{recipe.name}.journal"))
    states = [None] * len(steps) if again else journal.states(steps)
    console = PlainConsole()
    for number, (step, state) in enumerate(zip(steps, states, strict=True), 1):
        words = step + (AGAIN.get(step[0], []) if state == BEGUN else [])
        note = "done before" if state == DONE else f"hf-layerdrop {shlex.join(words)}"
        console.print(f"Step {number} of {len(steps)}: {note}", soft_wrap=True)
        if state == DONE or dry_run:
            continue
        journal.note(number - 1, step, BEGUN)
        code = _run(context, words)
        if code == WRONG_INPUT and state != BEGUN:  # it has written nothing: what is there is not its own
            journal.note(number - 1, step, REFUSED)
        if code:
            raise typer.Exit(code)
        journal.note(number - 1, step, DONE)


def _run(context: typer.Context, words: Sequence[str]) -> int:
    return context.obj(words)  # runs any command of the program that this one was started by


def read_recipe(path: Path) -> list[Step]:
    """Return the steps of a recipe as the words of their command lines.

    Raises:
        typer.BadParameter: If the file cannot be read, or a step is no command.
    """
    try:
        content = read_yaml(path)
    except Unreadable as error:
        raise typer.BadParameter(f"The recipe {str(path)!r} cannot be read: {error}") from error
    steps = content.get("steps") if isinstance(content, Mapping) else content
    if not isinstance(steps, list) or not steps:
        raise typer.BadParameter(f"The recipe {str(path)!r} must be a list of steps, such as '- train: {{task: mlm}}'")
    return [_words(step, number) for number, step in enumerate(steps, 1)]


def _words(step: Any, number: int) -> Step:
    try:
        words = shlex.split(step) if isinstance(step, str) else _spelled(step)
        if any("\0" in word for word in words):
            raise ValueError("it has a null character")
    except ValueError as error:  # a quotation mark that stands open, say
        raise typer.BadParameter(
            f"Step {number} of the recipe is {repr(step)[:_SHOWN]}, which cannot be read ({error}): give a command "
            "line, or one command with its options by name"
        ) from error
    if not words or words[0] not in COMMANDS:
        raise typer.BadParameter(
            f"Step {number} of the recipe is {repr(step)[:_SHOWN]}; give a command line, or one command with its "
            f"options, of {', '.join(COMMANDS)}"
        )
    return words


def _spelled(step: Any) -> Step:
    if not isinstance(step, Mapping) or len(step) != 1:
        return []
    ((command, options),) = step.items()
    if not isinstance(options or {}, Mapping):
        raise ValueError(f"the options of {command} are no names with values")
    return [str(command), *_options(str(command), options or {})]


def _options(command: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Write options as the command line has them; the model of most commands stands without a name."""
    for name, value in options.items():
        if any(isinstance(item, Mapping | list) for item in (value if isinstance(value, list) else [value])):
            raise ValueError(f"the value of {name} is no text, number or list of them")
        if name == "model" and command in TAKES_MODEL_FIRST:
            yield str(value)
        elif isinstance(value, bool):
            yield from [f"--{name}"] if value else []
        else:
            for item in value if isinstance(value, list) else [value]:
                yield from (f"--{name}", str(item))


class StepJournal:
    """Which steps were begun and done, in a file beside the recipe; a step that was changed counts as new."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, _KIND, ("place", "words", "state"))

    def states(self, steps: Sequence[Step]) -> list[str | None]:
        """Return the state of each step; after a changed one, all are new."""
        noted: list[Record] = []
        with reading_records(self._journal.path, _KIND):
            for record in self._journal.records:  # what follows a step that was begun anew is to be done anew
                place = record["place"]
                if not isinstance(place, int) or place < 0:
                    raise Unreadable("there is no such step")
                noted[place:] = [record]
        states: list[str | None] = []
        for place, step in enumerate(steps):
            known = place < len(noted) and noted[place]["words"] == step and (not states or states[-1] == DONE)
            states.append(noted[place]["state"] if known else None)
        return states

    def note(self, place: int, words: Step, state: str) -> None:
        """Write that a step was begun or done."""
        self._journal.add({"place": place, "words": words, "state": state})
