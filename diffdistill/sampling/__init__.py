"""Sampling: a model, a seed and a number in, uint8 images out."""
