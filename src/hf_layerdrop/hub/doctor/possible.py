"""Which structures of a stack can be dropped, and which pruned for good, as far as names of weights tell (3.2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_layerdrop.architectures.families import HEAD_FIELDS, HEAD_WIDTH_FIELD, OUTPUT_PROJECTIONS, SLICES_FIELD
from hf_layerdrop.checkpoints.stored_model import StoredStack

YES, NO, LATER, ASKED = "yes", "no", "if its code shows it", "if its config can say so"

_NO_FIELD = "no field of a config says that a layer lacks it"


@dataclass(frozen=True)
class Possible:
    """What can be done with a structure: ``yes``, ``no``, or what only the model's code or class tells, and why."""

    structure: str
    drop: str
    prune: str
    why: str = ""


def possible_structures(stack: StoredStack, *, alone: bool) -> list[Possible]:
    """Tell what can be dropped and pruned in a stack; ``alone`` if the model has no other."""
    matrices = [name for name, tensor in stack.layers[0] if len(tensor.shape) > 1]
    layer = Possible("layer", YES, YES)
    if stack.config.get(SLICES_FIELD):
        layer = Possible("layer", YES, NO, "its embeddings hold a slice for each layer")
    if not any(map(_of_attention, matrices)):
        none = "no attention was found by the names of its weights"
        return [layer, *(Possible(name, NO, NO, none) for name in ("attention", "ffn", "head"))]
    ffn = not all(map(_of_attention, matrices))
    return [
        layer,
        Possible("attention", LATER, NO, _NO_FIELD),
        Possible("ffn", LATER if ffn else NO, NO, _NO_FIELD if ffn else "no feed-forward was found"),
        _heads(stack, len({name for name in matrices if _is_output_projection(name)}), alone=alone),
    ]


def _heads(stack: StoredStack, attentions: int, *, alone: bool) -> Possible:
    if not attentions:
        return Possible("head", NO, NO, f"no output projection was found ({', '.join(OUTPUT_PROJECTIONS)})")
    count = _first(stack.config, HEAD_FIELDS.get(stack.name, HEAD_FIELDS["layers"]))
    said = f"{count} a layer" if count else "their number stands in the model's code"
    if attentions > 1:
        said += f", in each of {attentions} attentions"
    if not alone or attentions > 1:
        return Possible("head", LATER, NO, f"{said}; prune_heads takes models of one stack without cross-attention")
    if stack.config.get(HEAD_WIDTH_FIELD):
        return Possible(
            "head", LATER, YES, f"{said}; equally many in each layer, as {HEAD_WIDTH_FIELD} gives their width"
        )
    return Possible("head", LATER, ASKED, f"{said}; equally many in each layer")


def _first(config: Mapping[str, Any], fields: Sequence[str]) -> int | None:
    return next((value for field in fields if type(value := config.get(field)) is int), None)


def _of_attention(name: str) -> bool:
    return "att" in name.lower()


def _is_output_projection(name: str) -> bool:
    """Tell by its name the matrix that joins the heads of an attention."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    return _of_attention(name) and module in OUTPUT_PROJECTIONS and name.endswith(".weight")
