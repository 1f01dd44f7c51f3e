"""Heads: the parts of a detector with losses."""
