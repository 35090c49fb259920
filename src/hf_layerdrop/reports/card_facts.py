"""What a card says of any checkpoint: its labels, a line that uses it, what it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_SENTENCE = '"A warm, funny film that I would gladly see again."'
# What a pipeline of transformers is called with, by its task; of other tasks a card shows no call.
_CALLS = {
    "text-classification": _SENTENCE,
    "feature-extraction": _SENTENCE,
    "token-classification": '"Ada Lovelace was born in London."',
    "question-answering": 'question="Where was Ada born?", context="Ada Lovelace was born in London."',
    "fill-mask": 'f"London is a {model.tokenizer.mask_token}."',
    "text-generation": '"Once upon a time"',
    "image-classification": '"picture.png"',
    "audio-classification": '"speech.wav"',
    "automatic-speech-recognition": '"speech.wav"',
}
_FEW = 10  # labels that are listed


def call_of(pipeline_tag: str | None) -> str | None:
    """Return the arguments of an example of a task's pipeline; None if there is none."""
    return _CALLS.get(pipeline_tag or "")


def labels_of(config: Mapping[str, Any]) -> str | None:
    """Write the labels of a checkpoint, in their order; None where they have no names of their own."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or not labels:
        return None
    names = [str(name) for name in labels.values()]
    if all(name.startswith("LABEL_") for name in names):
        return None
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def task_of(config: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the Hub's name of the task of a checkpoint's class, and whether ``transformers.pipeline`` knows it."""
    from transformers.modelcard import TASK_MAPPING
    from transformers.pipelines import PIPELINE_REGISTRY

    architecture = (config.get("architectures") or [""])[0]
    # the last match, as in transformers' own card: BART's generation head is listed as a masked language model too
    tags = [tag for tag, mapping in TASK_MAPPING.items() if mapping.get(config.get("model_type")) == architecture]
    tag = tags[-1] if tags else None
    return tag, tag in PIPELINE_REGISTRY.get_supported_tasks()


def made_with() -> str:
    """Name the versions of what writes a checkpoint."""
    found = []
    for name in ("hf-layerdrop", "transformers", "torch"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
