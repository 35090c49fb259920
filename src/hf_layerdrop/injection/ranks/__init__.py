"""LayerDrop on several ranks: DDP, FSDP2 and ZeRO-3."""
