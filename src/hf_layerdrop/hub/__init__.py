"""Save a sub-network as a plain checkpoint, publish it on the Hub, or serve it: none needs hf_layerdrop afterwards.

torch and transformers are imported where they are used, so that what is wrong with the arguments alone is said at once.
"""

from hf_layerdrop.hub.push import push_pruned_to_hub
from hf_layerdrop.hub.save import save_pruned
from hf_layerdrop.hub.serve import pipeline

__all__ = ["pipeline", "push_pruned_to_hub", "save_pruned"]
