"""Pipelines of diffusers as denoisers: `pixel` of images, `text` of latents and prompts; `load.py` reads either."""
