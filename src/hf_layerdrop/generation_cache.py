"""Whether plain transformers makes a cache that is deep enough when a model generates.

Before it generates, transformers makes a cache with a place for each layer of the decoder, which it counts by
``num_hidden_layers``. Some configs of encoder and decoder know that name for the depth of the encoder alone. Their
models run whatever the depths are, but with fewer layers in the encoder than in the decoder they cannot generate with a
cache, by whom ever they were built; without one, they generate the same tokens more slowly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from transformers import PreTrainedModel

from hf_layerdrop.stacks import Stack

logger = logging.getLogger(__name__)

WITHOUT_CACHE = {"use_cache": False}  # fields of a generation config


def has_short_cache(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> bool:
    """Tell whether the cache that a model uses would have fewer places than its decoder has layers, by its config."""
    config, decoder = model.config, stacks.get("decoder")
    if decoder is None or not config.is_encoder_decoder or getattr(model, "generation_config", None) is None:
        return False
    if model.generation_config.use_cache is False:
        return False
    places = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    return places is not None and places < getattr(decoder.config(config), decoder.depth_field)


def switch_off_short_cache(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> None:
    """Have a model generate without a cache if its cache would be too short; a checkpoint of it says so to anyone."""
    if not has_short_cache(model, stacks):
        return
    model.generation_config.update(**WITHOUT_CACHE)
    logger.warning(
        "The encoder has fewer layers than the decoder, for which transformers makes too short a cache in a %s: it "
        "generates without one now (use_cache=False in its generation config), more slowly; keep as many layers of "
        "the encoder, or fewer of the decoder, to have the cache.",
        type(model).__name__,
    )
