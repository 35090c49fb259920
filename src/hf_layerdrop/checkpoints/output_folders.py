"""Where results may be written; checked before any work is done for them."""

from __future__ import annotations

from pathlib import Path

from hf_layerdrop.errors import OutputExistsError


def check_above(output: Path) -> None:
    """Refuse a file or folder that could not be made, because what lies above it is no folder.

    Raises:
        OutputExistsError: If there is a file above it.
    """
    above = next((folder for folder in output.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise OutputExistsError(
            f"{str(output)!r} cannot be written, since {str(above)!r} is a file and not a folder: choose another place."
        )
