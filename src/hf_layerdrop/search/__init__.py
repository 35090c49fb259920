"""Choose the layers: rules, search on a validation set and importance scores, all giving one record."""
