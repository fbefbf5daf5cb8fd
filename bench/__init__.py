"""Measurements of sigmoid_op: ``python -m bench --help``."""
