"""Tasks as data: their columns, labels and metrics, where their rows come from, how they become model inputs."""
