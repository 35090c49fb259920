"""What a cut, training at scale and compilation need, as one table; docs/distributed.md and docs/compile.md say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_layerdrop.checkpoints.stored_model import StoredStack

# What a model goes through: what it needs for LayerDrop.
NOTES: dict[str, str] = {
    "prune": "asks, before it reads or writes, whether plain transformers would rebuild every kept layer as it was",
    "DDP": "no flag: find_unused_parameters may be on or off; dropped layers send zeros and get no optimizer step",
    "FSDP2": "wrap layer by layer (weights {blocks}): a dropped layer is neither gathered nor reduced",
    "ZeRO-3": "works; momentum and weight decay still move a dropped layer",
    "FSDP1, ZeRO-2, tensor or pipeline parallel": "not tested with LayerDrop",
    "DataParallel": "refused: start one process a device, with accelerate launch or torchrun",
    "compile": "compile layer by layer (weights {blocks}), at most two graphs a kind of block; one full graph needs "
    "execution='mask', which computes dropped layers",
}
# The same for some models only.
_CACHE = ("compile, two stacks", "set config.use_cache = False for training, or the cache gives each layer its graph")
_KINDS = ("compile, kinds", "its layers are of {kinds} kinds, each with graphs of its own")


def notes_for(config: Mapping[str, Any], stacks: Sequence[StoredStack], *, kinds: int = 1) -> dict[str, str]:
    """Return the notes that concern a model; ``kinds`` is the number of kinds that its layers are of."""
    blocks = ", ".join(f"{stack.path}.*" for stack in stacks)
    notes = dict(NOTES)
    if config.get("is_encoder_decoder"):
        notes |= dict([_CACHE])
    if kinds > 1:
        notes |= dict([_KINDS])
    return {name: note.format(blocks=blocks, kinds=kinds) for name, note in notes.items()}
