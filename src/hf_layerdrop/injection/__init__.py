"""Put LayerDrop into a model in memory, and take it out without a trace."""
