"""Exposure bias: measured, signed and per step, on the user's own model, and the corrections fitted to it."""
