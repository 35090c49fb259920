"""What LayerDrop and a cut will mean for a checkpoint, told before anything is trained or cut."""
