"""Choose a draft for assisted generation: agreement of tokens, counted, and what a round takes, measured."""
