"""hf-layerdrop inspect: what a checkpoint holds and what a cut will mean; no weights are read.

Torch is imported where the model is built without weights; ``--help`` does without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hf_layerdrop.checkpoints.adapter_files import describe_adapter
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, has_only_pickle, read_config
from hf_layerdrop.checkpoints.provenance import own_provenance
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import found_recommended
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.cli.arguments import Model, Revision, TrustRemoteCode, check_revision
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.results.recommended import recommended_table
from hf_layerdrop.results.table import format_kept, format_parameters


def inspect_command(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables, with exact numbers.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show what goes for every model, too.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a checkpoint holds and what LayerDrop and a cut will mean for it, without loading it.

    Stacks, depths, saved rates and parameters; the structures that can be dropped or pruned; the config fields that a
    cut changes; the traps that were found; what this model needs in distributed training and for torch.compile.
    """
    check_revision(model, revision)
    if has_only_pickle(model):
        facts = describe_pickle(model)
    else:
        headers = read_headers(model, revision=revision)  # of an adapter, of its base

        from hf_layerdrop.hub.doctor.facts import describe_checkpoint

        adapter = headers.source != model
        where: dict[str, Any] = {} if adapter else {"revision": revision}
        try:
            facts = describe_checkpoint(headers, trust_remote_code=trust_remote_code, **where)
        except LayerDropError as error:
            if as_json:
                facts = {**_of_the_whole(headers), "supported": False, "reason": str(error)}
                typer.echo(json.dumps(facts, indent=2))
            raise
        if adapter:
            facts |= {"model": model, "adapter": describe_adapter(model, headers.source)}
    table = _add_recommended(facts, model, revision)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = PlainConsole()
    for shown in _tables(facts, everything=everything):
        console.print(shown)
    if table is not None:
        console.print(recommended_table(table))


def _add_recommended(facts: dict[str, Any], model: str, revision: str | None) -> RecommendedSets | None:
    """Add the recommended sets to the facts, and return them; a table that cannot be used is a trap."""
    facts["recommended_sets"] = None
    depths = {stack["name"]: stack["depth"] for stack in facts["stacks"]}
    try:
        table = found_recommended(model, revision)
        if table is None:
            return None
        if depths:
            table.check(depths)
    except LayerDropError as error:
        facts["traps"].append({"name": "recommended sets", "stack": "", "says": str(error)})
        return None
    facts["recommended_sets"] = table.model_dump(mode="json")
    return table


def describe_pickle(folder: str) -> dict[str, Any]:
    """Say of a checkpoint whose weights are a pickle what its config says; they are not opened."""
    config = read_config(folder)
    says = (
        "the weights are a pickle, which can run code when read, so they were not looked at: if you trust it, allow it "
        "with use_safetensors=False in Python or --allow-pickle on the command line; what is then saved is safetensors"
    )
    return {
        "model": str(Path(folder)),
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "parameters": None,
        "supported": None,
        "stacks": [],
        "traps": [{"name": "pickle", "stack": "", "says": says}],
        "notes": {},
        "hf_layerdrop": own_provenance(config) or None,
    }


def _of_the_whole(headers: CheckpointHeaders) -> dict[str, Any]:
    return {
        "model": headers.source,
        "model_type": headers.model_type,
        "architectures": headers.architectures,
        "parameters": headers.parameters,
    }


def _tables(facts: Mapping[str, Any], *, everything: bool) -> list[Table]:
    tables = [_facts_table(facts)]
    if facts["stacks"]:
        tables += [_stacks_table(facts["stacks"]), _structures_table(facts["stacks"])]
    tables.append(_said("traps", _traps(facts["traps"])))
    from hf_layerdrop.hub.doctor.notes import NOTES

    notes = {name: note for name, note in facts["notes"].items() if everything or name not in NOTES}
    if notes:
        tables.append(_said("in use", list(notes.items())))
    return tables


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", facts["model"])
    table.add_row("model type", f"{facts['model_type']} ({', '.join(facts['architectures'] or ['no architecture'])})")
    table.add_row("parameters", "not looked at" if facts["parameters"] is None else _rounded(facts["parameters"]))
    if adapter := facts.get("adapter"):
        size = "" if adapter["parameters"] is None else f", {_rounded(adapter['parameters'])} parameters"
        table.add_row("adapter", f"{adapter['type'] or 'PEFT'}{size}; all else is said of its base, {adapter['base']}")
    for name, value in (facts["hf_layerdrop"] or {}).items():
        if name != "rates" and value is not None:
            table.add_row(name.replace("_", " "), _line(name, value))
    return table


def _stacks_table(stacks: list[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("stack", "depth", "rates", "parameters a layer", "in all", "a cut changes in the config"):
        table.add_column(name, overflow="fold")
    for stack in stacks:
        per_layer = stack["parameters_per_layer"]
        table.add_row(
            stack["name"],
            str(stack["depth"]),
            _same_or_each(stack["rates"]) if stack["rates"] else "-",
            _same_or_each(per_layer),
            _rounded(sum(per_layer)),
            ", ".join(stack["fields_that_change"]),
        )
    return table


def _structures_table(stacks: list[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("structure", "of", "dropped", "pruned", ""):
        table.add_column(name, overflow="fold")
    rows: list[tuple[tuple[str, ...], str, str]] = [
        ((found["drop"], found["prune"], found["why"]), found["structure"], stack["name"])
        for stack in stacks
        for found in stack["structures"]
    ]
    for said in dict.fromkeys(row[0] for row in rows):
        alike = [row[1:] for row in rows if row[0] == said]
        structures, names = (", ".join(dict.fromkeys(column)) for column in zip(*alike, strict=True))
        table.add_row(structures, names, *said)
    return table


def _traps(traps: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return a row for each trap; what is said of several stacks is said once."""
    rows = []
    for name, says in dict.fromkeys((trap["name"], trap["says"]) for trap in traps):
        stacks = [trap["stack"] for trap in traps if trap["says"] == says and trap["stack"]]
        rows.append((f"{name} ({', '.join(stacks)})" if stacks else name, says))
    return rows or [("none found", "")]


def _said(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(title, overflow="fold")
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _same_or_each(values: list[float]) -> str:
    """Show a list of equal values by the value."""
    return ", ".join(_rounded(value) for value in (values[:1] if len(set(values)) == 1 else values))


def _rounded(value: float) -> str:
    """Write a count to three digits, ``22.7M``; a rate to three as well."""
    return format_parameters(value) if isinstance(value, int) else f"{value:.3g}"


def _line(name: str, value: Any) -> str:
    """Write what a checkpoint's record says, as the card does; what is none of its usual forms as JSON."""
    from hf_layerdrop.reports.card import MeasuredOn, describe_training

    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if name == "trained_with" and (said := describe_training(value)):
            return said
        if name == "measured_on":
            return str(MeasuredOn.of(value))
        if all(isinstance(layers, list) and all(type(layer) is int for layer in layers) for layers in value.values()):
            return format_kept(value)
    return json.dumps(value)
