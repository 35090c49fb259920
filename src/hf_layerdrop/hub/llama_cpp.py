"""The line with which llama.cpp makes a cut itself, of a GGUF file of the whole model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_layerdrop.architectures.families import OVERRIDES_FIELD, bias_in_first_block, cut_fields
from hf_layerdrop.checkpoints.stored_model import StoredModel, StoredStack
from hf_layerdrop.errors import KeepLayersError, UnsupportedModelError


def llama_quantize_line(model: str, stored: StoredModel, keep_layers: Mapping[str, Sequence[int]]) -> str:
    """Return the ``llama-quantize --prune-layers`` line that leaves the kept layers; it lists the others.

    The tool renumbers the blocks and corrects their count, and no other metadata. Its type ``COPY`` leaves weights as
    they are.

    Args:
        model: The folder or Hub id, after which the files are named.
        stored: What the checkpoint holds.
        keep_layers: The kept layers of each stack, as `parse_keep_layers` returns them.

    Raises:
        KeepLayersError: Every layer is kept.
        UnsupportedModelError: The file would not be this cut: there are several stacks, an adapter, or metadata that
            say what single layers are.
    """
    if stored.headers.source != model:
        raise UnsupportedModelError(
            f"{model!r} is an adapter, which a GGUF file of its base {stored.headers.source!r} does not hold: write "
            "the cut with --output, and convert that."
        )
    if reason := _why_not(stored, keep_layers):
        raise UnsupportedModelError(
            f"llama-quantize renumbers blocks and changes no other metadata, but {model!r} {reason}: write the cut "
            "with --output, and convert that."
        )
    ((stack, kept),) = keep_layers.items()
    dropped = [layer for layer in range(stored.depths[stack]) if layer not in kept]
    if not dropped:
        raise KeepLayersError(
            f"keep_layers keeps all {len(kept)} layers of {model!r}, so there is nothing for llama-quantize to prune: "
            "convert it as it is, or keep fewer."
        )
    name = Path(model).resolve().name
    files = [f"{name}.gguf", f"{name}-{len(kept)}-layers.gguf"]
    return shlex.join(["llama-quantize", "--prune-layers", ",".join(map(str, dropped)), *files, "COPY"])


def _why_not(stored: StoredModel, keep_layers: Mapping[str, Sequence[int]]) -> str | None:
    if len(stored.stacks) > 1:
        return f"has the stacks {' and '.join(stored.depths)}, whose blocks have the same numbers"
    (stack,) = stored.stacks
    if bias_in_first_block(stack.config.get("model_type")) and 0 not in keep_layers[stack.name]:
        return "has in its layer 0 what the others borrow"
    if fields := _fields_of_single_layers(stack, keep_layers[stack.name]):
        return f"says by {', '.join(fields)} what single layers are"
    return None


def _fields_of_single_layers(stack: StoredStack, kept: Sequence[int]) -> list[str]:
    """Name the fields of its config that go along with a cut, and do not say the same of every layer."""
    cut = cut_fields(stack.config, stack.depth, kept)
    overrides = [OVERRIDES_FIELD] if stack.config.get(OVERRIDES_FIELD) else []
    return [field for field in cut if _tells_apart(stack.config[field], stack.depth)] + overrides


def _tells_apart(value: Any, depth: int) -> bool:
    if isinstance(value, int):  # a count of layers from the first or the last on
        return 0 < value < depth
    return len(value) > 0 and (len(value) != depth or any(entry != value[0] for entry in value))
