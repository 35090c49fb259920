"""Predictions of a frozen teacher, kept row by row, so that it runs once for a row and not once an epoch.

A row is known by its inputs without padding, and what is predicted at padding is not kept: a row is found again beside
longer ones. The two predictions of a span are over all positions, padding too, and are found again at the same length
alone. Nothing of it waits for a device where the batch comes from a collator that knows the rows (`WithRowKeys`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_layerdrop.checkpoints.outputs import check_writable
from hf_layerdrop.distillation.positions import IGNORED
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.evaluation.fingerprints import fingerprint

ROW_KEYS = "layerdrop_row_keys"  # in a batch: what its rows are known by
ROWS_A_FILE = 4096
_SPANS = ("start_logits", "end_logits")

Batch = Mapping[str, Any]


class KeptPredictions:
    """Predictions by row, in memory, and in a folder if one is given, from which another run goes on.

    Args:
        folder: Where they are written, as safetensors.
        teacher: What tells the teacher from others.
        teacher_forced: Whether predictions are of the labels' positions, as those of an encoder-decoder are.

    Raises:
        DistillationError: If the folder holds those of another teacher.
        OutputExistsError: If the folder cannot be written.
    """

    def __init__(self, folder: Path | None = None, teacher: str = "", *, teacher_forced: bool = False) -> None:
        self._folder, self._teacher, self._teacher_forced = folder, teacher, teacher_forced
        self._rows: dict[str, dict[str, torch.Tensor]] = {}
        self._new: list[str] = []
        if folder is not None:
            check_writable(folder)
            self._read(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[str], batch: Batch) -> dict[str, torch.Tensor] | None:
        """Return the predictions for a batch, on its device; None if some of its rows are new."""
        rows = [self._rows.get(key, {}) for key in keys]
        real = self._real(batch)
        if not all(rows) or not all(_fits(row, real) for row in rows):
            return None
        device = next(value.device for value in batch.values() if torch.is_tensor(value))
        return {name: _joined([row[name] for row in rows], real).to(device) for name in rows[0]}

    def keep(self, keys: Sequence[str], batch: Batch, predictions: Mapping[str, torch.Tensor]) -> None:
        """Keep the predictions for a batch."""
        real = self._real(batch)
        on_host = {name: value.detach().cpu() for name, value in predictions.items()}
        for place, key in enumerate(keys):
            if key not in self._rows or not _fits(self._rows[key], real):
                own = None if real is None else real[place]
                self._rows[key] = {name: _of_row(value[place], own) for name, value in on_host.items()}
                self._new.append(key)
        if len(self._new) >= ROWS_A_FILE:
            self.save()

    def save(self) -> None:
        """Write what is new into the folder, if there is one, in a file that appears whole."""
        if self._folder is None or not self._new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{key}/{name}": value.contiguous() for key in self._new for name, value in self._rows[key].items()}
        name = f"rows-{fingerprint(self._new)}.safetensors"  # ranks write their own rows
        save_file(tensors, self._folder / f".{name}", metadata={"teacher": self._teacher})
        (self._folder / f".{name}").replace(self._folder / name)
        self._new = []

    def _read(self, folder: Path) -> None:
        for path in sorted(folder.glob("rows-*.safetensors")):
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("teacher") != self._teacher:
                    raise DistillationError(
                        f"{str(path)!r} holds the predictions of another teacher; name another folder in "
                        "keep_predictions, or delete this one."
                    )
                for full in file.keys():  # noqa: SIM118 - it is no dict
                    key, _, name = full.partition("/")
                    self._rows.setdefault(key, {})[name] = file.get_tensor(full)

    def _real(self, batch: Batch) -> torch.Tensor | None:
        """Return which positions of predictions are no padding, by row; None if nothing is padded."""
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if self._teacher_forced and labels is not None and labels.dim() == 2:
            return labels.cpu() != IGNORED
        return mask.cpu().bool() if mask is not None and mask.dim() == 2 else None


class WithRowKeys:
    """A collator that also says what the rows of its batches are known by, while they are still in memory."""

    def __init__(self, collator: Callable[..., Any]) -> None:
        self.collator = collator

    def __call__(self, features: Any) -> Any:
        """Collate."""
        batch = self.collator(features)
        return {**batch, ROW_KEYS: row_keys(batch)}


def row_keys(batch: Batch) -> list[str]:
    """Return what tells the rows of a batch apart, without their padding."""
    tensors = {name: value.detach().cpu() for name, value in sorted(batch.items()) if torch.is_tensor(value)}
    rows = len(next(iter(tensors.values())))
    return [
        fingerprint({name: _without_padding(value[row], name, row, tensors) for name, value in tensors.items()})
        for row in range(rows)
    ]


def _without_padding(row: torch.Tensor, name: str, place: int, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if labels is not None and labels.dim() == 2 and (name == "labels" or name.startswith("decoder_")):
        counts = (labels[place] != IGNORED).nonzero()
        return row[: int(counts[-1]) + 1 if len(counts) else 0]
    if mask is None or row.shape != mask[place].shape:
        return row
    return row.sum(-1) if name == "attention_mask" else row[mask[place].bool()]


def _fits(row: Mapping[str, torch.Tensor], real: torch.Tensor | None) -> bool:
    """Tell whether the predictions of a span are over as many positions as a batch has."""
    return real is None or all(len(row[name]) == real.shape[1] for name in _SPANS if name in row)


def _of_row(row: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Return what is kept of one row's predictions: of tokens, which have classes each, the real ones."""
    return row[real] if real is not None and row.dim() == 2 else row.clone()


def _joined(rows: Sequence[torch.Tensor], real: torch.Tensor | None) -> torch.Tensor:
    if real is None or rows[0].dim() != 2:
        return torch.stack(list(rows))
    whole = rows[0].new_zeros(*real.shape, rows[0].shape[1])
    whole[real] = torch.cat(list(rows))
    return whole
