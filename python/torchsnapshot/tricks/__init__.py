"""Adapters for objects whose state dicts need a little translation."""
