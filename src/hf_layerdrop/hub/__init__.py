"""Save a sub-network as a plain checkpoint, publish it on the Hub, or serve it: none needs hf_layerdrop afterwards."""
