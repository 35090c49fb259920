"""What the card of a model says that goes for what is made of it, too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.strangers import LARGE, check_kind

_logger = logging.getLogger(__name__)

CARD = "README.md"
_INHERITED = ("license", "license_name", "license_link", "language", "datasets", "base_model")


def said_by_card(card: Path) -> dict[str, Any]:
    """Read licence, language, data and base model; empty where there is no card, or one that cannot be read."""
    if not card.is_file():
        return {}
    try:
        check_kind(card, LARGE)
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # anyone's YAML: a card that cannot be read only means that less is known
        _logger.debug("The card %s cannot be read: %s", card, type(error).__name__)
        return {}
    return {name: data[name] for name in _INHERITED if data.get(name)}


def said_of(name: str) -> dict[str, Any]:
    """Read the same of a folder, or of a model on the Hub, of which nothing but the card is fetched."""
    if Path(name).is_dir():
        return said_by_card(Path(name, CARD))
    try:
        with bounded_waits():
            return said_by_card(Path(hf_hub_download(name, CARD)))
    except Exception as error:  # without network, without a card: less is known
        _logger.debug("No card of %s: %s", name, type(error).__name__)
        return {}
