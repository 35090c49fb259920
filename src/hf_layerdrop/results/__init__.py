"""What a measurement returns: the record of a sub-network, lists of them, and their table and plot."""
