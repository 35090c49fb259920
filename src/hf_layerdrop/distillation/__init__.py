"""Distillation: a student that is cut out of its teacher, and trained to imitate it (DistilBERT's recipe)."""
