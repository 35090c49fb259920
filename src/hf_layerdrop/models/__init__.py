"""The model classes: the named LayerDrop classes, and Auto classes for every architecture."""
