"""Where the layers of a model are, and what is special about a family: the only folder that knows models."""
