"""Run commands: what a failing one says, and how it ends: one line on stderr, and a traceback only on request."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import typer

from hf_layerdrop.compat import usage_error
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.results.escaping import without_controls

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
_LONGEST = 4000  # characters of what is said

UsageError: type[Any] = usage_error()

# Values of the flag --debug of TrainingArguments, which `train` passes through.
_DEBUG_OF_TRAINER = {"underspecified_overflow", "tpu_metrics_debug"}


def run_app(app: typer.Typer, arguments: Sequence[str], *, name: str) -> int:
    """Run one command of an application and return its exit code: 0 done, 2 wrong usage or input, 1 anything else."""
    words, debug = _split_debug(arguments)

    def again(more: Sequence[str]) -> int:  # for a command that runs others
        return run_app(app, more, name=name)

    code = run_reporting_errors(lambda: app(words, prog_name=name, standalone_mode=False, obj=again), debug=debug)
    ranks = sys.modules.get("hf_layerdrop.injection.ranks.ddp")  # importing it takes seconds, which most do without
    if code == DONE and ranks is not None:
        ranks.leave_ranks()
    return code


def run_reporting_errors(command: Callable[[], Any], *, debug: bool) -> int:
    """Run a command and return its exit code; what goes wrong is reported, not raised."""
    try:
        code = command()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            typer.echo(_one_line(error), err=True)
        return WRONG_INPUT if isinstance(error, LayerDropError | UsageError) or _is_too_long(error) else FAILED
    return code if isinstance(code, int) else DONE  # typer returns the code of typer.Exit


def _one_line(error: Exception) -> str:
    if isinstance(error, LayerDropError):
        text = str(error)
    elif isinstance(error, UsageError):
        text = _usage(error)
    elif _is_too_long(error):
        text = f"{str(error.filename)[:100]!r}... is longer than the name of a file can be: give a shorter one."
    else:
        text = f"{type(error).__name__}: {error} (run again with --debug for the traceback)"
    line = " ".join(without_controls(f"Error: {text}").split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."  # it may quote what a file says


def _is_too_long(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hf-layerdrop"
    return f"{error.format_message().rstrip('.')}{_given(error)}; see {command} --help."


def _given(error: Any) -> str:
    """Name the value where typer says only what is allowed, as it does since it leaves the check to pydantic."""
    try:
        return f", and not {error.__cause__.errors()[0]['input']!r}"
    except (AttributeError, TypeError, LookupError):
        return ""


def _split_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take our --debug out of the arguments, wherever it stands."""
    followers = [*arguments, ""][1:]
    rest = [
        argument
        for argument, follower in zip(arguments, followers, strict=True)
        if argument != "--debug" or follower in _DEBUG_OF_TRAINER
    ]
    return rest, len(rest) < len(arguments)
