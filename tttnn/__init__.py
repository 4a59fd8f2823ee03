"""Test-time training on nearest neighbours, and its relatives, in JAX."""

__version__ = '0.1.0'
