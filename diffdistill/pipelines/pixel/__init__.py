"""Pipelines of a network and a scheduler, which work on pixels."""
