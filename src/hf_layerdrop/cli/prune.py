"""hf-layerdrop prune: write a shallow model as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    given_results,
    loading_arguments,
)
from hf_layerdrop.cli.console import PlainConsole


def prune_command(
    model: Model,
    keep_layers: KeepLayersSpec,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist yet.")],
    results: Results = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    no_tokenizer: NoTokenizer = False,
) -> None:
    """Keep only some layers of MODEL and write a plain transformers checkpoint, which needs no hf_layerdrop."""
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
