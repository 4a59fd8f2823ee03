"""Vectors and their texts: build, store, serve, search."""
