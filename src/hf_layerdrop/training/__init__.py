"""Training with LayerDrop: callbacks, trainers, whole runs, models from scratch."""
