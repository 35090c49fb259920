"""Cut a model to some of its layers: in memory, while loading, for a moment, or as a view on shared weights."""
