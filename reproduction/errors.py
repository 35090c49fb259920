"""What can be wrong with an experiment, its data or its journal."""

from hf_layerdrop.errors import LayerDropError


class ReproductionError(LayerDropError, ValueError):
    """An experiment of the paper, one of its arms, its data or its journal is not what it should be."""
