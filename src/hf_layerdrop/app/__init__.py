"""A page in the browser on which one model answers at any depth."""
