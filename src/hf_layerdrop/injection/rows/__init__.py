"""Layers that run on some of the rows of a batch: ``granularity="row"``."""
