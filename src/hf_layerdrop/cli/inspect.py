"""hf-layerdrop inspect: what a checkpoint holds, read from its config and weight headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hf_layerdrop.cli.arguments import Model, Revision
from hf_layerdrop.headers import CheckpointHeaders, read_headers


def inspect_command(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    revision: Revision = None,
) -> None:
    """Show the stacks, depths, saved rates and parameters of a checkpoint, without loading it."""
    headers = read_headers(model, revision=revision)
    facts = describe_checkpoint(headers)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    console.print(_facts_table(facts))
    console.print(_stacks_table(facts["stacks"]))


def describe_checkpoint(headers: CheckpointHeaders) -> dict[str, Any]:
    """Collect what the headers and the config say, as plain JSON values."""
    provenance = _provenance(headers.config)
    return {
        "model": headers.source,
        "model_type": headers.model_type,
        "architectures": headers.config.get("architectures"),
        "parameters": headers.parameters,
        "stacks": [
            {
                "name": stack.name,
                "path": stack.path,
                "depth": stack.depth,
                "config_field": stack.config_field,
                "rates": provenance.get("rates", {}).get(stack.name),
                "parameters_per_layer": list(stack.parameters),
            }
            for stack in headers.stacks()
        ],
        "hf_layerdrop": provenance or None,
    }


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what hf_layerdrop wrote into the config; something else of that name is not ours to show."""
    saved = config.get("hf_layerdrop")
    saved = dict(saved) if isinstance(saved, Mapping) else {}
    return saved if isinstance(saved.get("rates", {}), Mapping) else {}


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", facts["model"])
    table.add_row("model type", f"{facts['model_type']} ({', '.join(facts['architectures'] or ['no architecture'])})")
    table.add_row("parameters", f"{facts['parameters']:,}")
    for name, value in (facts["hf_layerdrop"] or {}).items():
        if name != "rates" and value is not None:
            table.add_row(name.replace("_", " "), _line(value))
    return table


def _stacks_table(stacks: list[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("stack", "depth", "counted by", "rates", "parameters a layer", "in all"):
        table.add_column(name, overflow="fold")
    for stack in stacks:
        per_layer = stack["parameters_per_layer"]
        table.add_row(
            stack["name"],
            str(stack["depth"]),
            stack["config_field"],
            _same_or_each(stack["rates"]) if stack["rates"] else "-",
            _same_or_each(per_layer),
            f"{sum(per_layer):,}",
        )
    return table


def _same_or_each(values: list[float]) -> str:
    """Show a list of equal values by the value."""
    return ", ".join(f"{value:,}" for value in (values[:1] if len(set(values)) == 1 else values))


def _line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
