"""Heads: the parts of a detector that carry losses."""
