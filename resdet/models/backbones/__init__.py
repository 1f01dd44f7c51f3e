"""Backbones: images -> feature maps, fine to coarse."""
