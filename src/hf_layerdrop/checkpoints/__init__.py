"""What lies in a checkpoint: weight files, the config's record of LayerDrop, tokenizer, adapters."""
