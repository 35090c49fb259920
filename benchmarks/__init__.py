"""Measurements of what the package promises; each prints how it was measured, and one line of JSON last.

``python -m benchmarks NAME [--json]``: each file of this folder is one NAME, with a function ``run`` whose keyword
arguments are its options.
"""
