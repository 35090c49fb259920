"""hf-layerdrop push: publish a shallow model on the Hub, with a model card."""

from __future__ import annotations

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
    given_results,
    loading_arguments,
)
from hf_layerdrop.cli.console import PlainConsole


def push_command(
    model: Model,
    keep_layers: KeepLayersSpec,
    repo_id: Annotated[str, typer.Option("--repo-id", metavar="USER/NAME", help="Repository to create or add to.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may see a new repository.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="Access token, if not logged in.", show_default=False),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    results: Results = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    no_tokenizer: NoTokenizer = False,
) -> None:
    """Keep only some layers of MODEL and publish them on the Hub as a plain transformers checkpoint, in one commit."""
    records = given_results(results)
    found: dict[str, Any] = {
        "revision": revision,
        "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
    }
    check_keep_layers(model, keep_layers, token=token, **found)

    from hf_layerdrop.hub.push import push_pruned_to_hub

    commit = push_pruned_to_hub(
        model,
        repo_id,
        keep_layers=keep_layers,
        results=records,
        tokenizer=False if no_tokenizer else None,
        private=private,
        token=token,
        create_pr=create_pr,
        **loading_arguments(model, **found),
    )
    PlainConsole().print(f"Published {commit.pr_url or commit.commit_url}", soft_wrap=True)
