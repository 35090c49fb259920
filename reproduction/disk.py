"""A disk that fills: told in a sentence, whatever wrote last."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_layerdrop.errors import LayerDropError, said_by
from reproduction.errors import ReproductionError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("no space left", "disk quota exceeded")  # safetensors and torch raise no OSError
_TOO_FEW = 2**20  # bytes; torch says of a full disk only that writing failed


@contextmanager
def telling_of_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn what a full disk makes libraries raise into one sentence.

    Raises:
        ReproductionError: If it was that. What was finished is in the journal, and checkpoints that are cut short are
            not gone on from.
    """
    try:
        yield
    except LayerDropError:
        raise
    except Exception as error:
        if not _is_full(error, folder):
            raise
        raise ReproductionError(
            f"The disk of {str(folder)!r} is full ({said_by(error)}): free some space and give the same command again; "
            "finished runs are in the journal, and the one under way goes on from its last whole checkpoint."
        ) from error


def _is_full(error: BaseException, folder: Path) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        said = str(seen).lower()
        if getattr(seen, "errno", None) in _FULL or any(words in said for words in _SAID):
            return True
        seen = seen.__cause__ or seen.__context__
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return isinstance(error, OSError | RuntimeError) and shutil.disk_usage(existing).free < _TOO_FEW
