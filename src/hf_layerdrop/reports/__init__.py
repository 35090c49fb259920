"""Views of the same records: a table, a plot, an HTML report, a model card."""
