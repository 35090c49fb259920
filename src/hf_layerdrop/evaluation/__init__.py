"""Quality against depth: sub-networks measured in place."""
