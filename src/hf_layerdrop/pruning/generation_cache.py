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

from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.checkpoints.provenance import saved_provenance

logger = logging.getLogger(__name__)

NOTE = "use_cache_before"  # in config.hf_layerdrop: what the generation config said before it was switched off


def settle_cache(model: PreTrainedModel, stacks: Mapping[str, Stack], *, quiet: bool = False) -> None:
    """Have a model that was cut generate without a cache if its cache would be too short; its checkpoint says so too.

    A later cut that makes the cache deep enough brings it back.
    """
    noted = saved_provenance(model.config)
    if getattr(model, "generation_config", None) is None:
        return
    if not _is_short(model, stacks):
        if NOTE in noted:
            model.generation_config.use_cache = noted.pop(NOTE)
        return
    if model.generation_config.use_cache is False:
        return
    noted[NOTE] = model.generation_config.use_cache
    model.generation_config.use_cache = False
    if not quiet:
        logger.warning(
            "The encoder has fewer layers than the decoder, for which transformers makes too short a cache in a %s: it "
            "generates without one now (use_cache=False in its generation config), more slowly; keep as many layers "
            "of the encoder, or fewer of the decoder, to have the cache.",
            type(model).__name__,
        )


def _is_short(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> bool:
    """Tell whether a cache would have fewer places than the decoder has layers, by the model's present config."""
    config, decoder = model.config, stacks.get("decoder")
    if decoder is None or not config.is_encoder_decoder:
        return False
    places = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    return places is not None and places < getattr(decoder.config(config), decoder.depth_field)
