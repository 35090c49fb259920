"""A sub-network as a model of its own, on the very weights of the whole one.

In assisted generation (speculative decoding) a cheap model proposes tokens, and the whole model accepts those that it
would have chosen itself. A model trained with LayerDrop holds its own cheap model: any of its sub-networks, not only
its first layers as in early exit.
"""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn
from transformers import PreTrainedModel

from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.injection.open_blocks import turn_of_thread
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.samplers.keep_layers import KeepLayers


def shared_sub_network(model: nn.Module, keep_layers: KeepLayers) -> PreTrainedModel:
    """Build a sub-network of ``model`` that shares its weights: both can run, and none is copied.

    It is the pruned model, in ``eval()``, with a config and layer indices of its own; ``model`` stays as it is. A
    weight that is changed in place, as optimizers do, changes in both. Made for ``generate(..., assistant_model=...)``,
    and for serving several depths from the memory of one model.

    Raises:
        KeepLayersError: If ``keep_layers`` cannot be read or names layers that do not exist.
        UnsupportedModelError: If the model has no stacks, or its layers cannot be taken out.
    """
    whole = transformers_model(model)
    with turn_of_thread(whole):  # or it would be a copy of another thread's sub-network
        tensors = chain(whole.parameters(), whole.buffers())
        copied = {id(tensor): tensor for tensor in tensors}  # deepcopy takes them for copied, and shares them
        shallow = copy.deepcopy(whole, copied)
    prune_layers(shallow, keep_layers)
    return shallow.eval()
