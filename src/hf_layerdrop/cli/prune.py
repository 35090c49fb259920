"""hf-layerdrop prune: write a shallow model as a plain checkpoint."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.cli.arguments import (
    AllowPickle,
    KeepLayersSpec,
    Model,
    NoTokenizer,
    Results,
    Revision,
    TrustRemoteCode,
    check_keep_layers,
    check_output,
    checked_model,
    given_results,
    loading_arguments,
)
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.samplers.keep_layers import parse_keep_layers


class Tool(str, Enum):
    """Other tools that cut a model by themselves."""

    LLAMA_CPP = "llama.cpp"


def prune_command(
    model: Model,
    keep_layers: KeepLayersSpec,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist yet.", show_default=False),
    ] = None,
    tool: Annotated[
        Tool | None,
        typer.Option("--print", help="Write nothing; print the line by which this tool makes the cut of its file."),
    ] = None,
    results: Results = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    no_tokenizer: NoTokenizer = False,
) -> None:
    """Keep only some layers of MODEL and write a plain transformers checkpoint, which needs no hf_layerdrop."""
    if (output is None) == (tool is None):
        raise typer.BadParameter(
            "give --output DIR to write the cut, or --print llama.cpp to print a line: one of both"
        )
    if output is None:
        _print_line(model, keep_layers, revision=revision, trust_remote_code=trust_remote_code)
        return
    check_output(output, overwrite=overwrite)
    records = given_results(results)
    found: dict[str, Any] = {
        "revision": revision,
        "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
    }
    check_keep_layers(model, keep_layers, **found)

    from hf_layerdrop.hub.save import save_pruned

    loading = loading_arguments(model, **found)
    folder = save_pruned(
        model,
        output,
        keep_layers=keep_layers,
        results=records,
        overwrite=overwrite,
        tokenizer=False if no_tokenizer else None,
        **loading,
    )
    PlainConsole().print(f"Wrote {folder}", soft_wrap=True)


def _print_line(model: str, keep_layers: str, *, revision: str | None, trust_remote_code: bool) -> None:
    stored = checked_model(model, revision=revision, trust_remote_code=trust_remote_code)
    kept = parse_keep_layers(
        keep_layers, stored.depths, recommended=partial(read_recommended, model, revision=revision)
    )

    from hf_layerdrop.hub.llama_cpp import llama_quantize_line

    PlainConsole().print(llama_quantize_line(model, stored, kept), soft_wrap=True)
