"""All that `inspect` says of a checkpoint, as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hf_layerdrop.checkpoints.headers import CheckpointHeaders
from hf_layerdrop.checkpoints.provenance import own_provenance
from hf_layerdrop.checkpoints.stored_model import StoredModel, StoredStack, find_stored_model
from hf_layerdrop.checkpoints.unreadable import reading
from hf_layerdrop.hub.doctor.fields import fields_that_change
from hf_layerdrop.hub.doctor.notes import notes_for
from hf_layerdrop.hub.doctor.possible import possible_structures
from hf_layerdrop.hub.doctor.traps import find_traps, kinds_of


def describe_checkpoint(headers: CheckpointHeaders, **where: Any) -> dict[str, Any]:
    """Collect what a checkpoint holds, and what a cut means for it; ``where`` as for `find_stored_model`.

    Raises:
        CheckpointError: If its config builds no model, or another than the files hold.
        UnsupportedModelError: If the model cannot be cut by layers; the message says why.
    """
    model = find_stored_model(headers, **where)
    with reading(headers.source, alone=True):
        return _described(headers, model)


def _described(headers: CheckpointHeaders, model: StoredModel) -> dict[str, Any]:
    return {
        "model": headers.source,
        "model_type": headers.model_type,
        "architectures": headers.config.get("architectures") or [model.architecture],
        "parameters": model.parameters,
        "supported": True,
        "stacks": [_describe_stack(model, stack) for stack in model.stacks],
        "traps": [asdict(trap) for trap in find_traps(model)],
        "notes": notes_for(headers.config, model.stacks, kinds=max(len(kinds_of(stack)) for stack in model.stacks)),
        "hf_layerdrop": own_provenance(headers.config) or None,
    }


def _describe_stack(model: StoredModel, stack: StoredStack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "path": stack.path,
        "depth": stack.depth,
        "config_field": stack.config_field,
        "rates": (own_provenance(model.headers.config).get("rates") or {}).get(stack.name),
        "parameters_per_layer": list(stack.parameters),
        "structures": [asdict(found) for found in possible_structures(stack, alone=len(model.stacks) == 1)],
        "fields_that_change": fields_that_change(stack),
    }
