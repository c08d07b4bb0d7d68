"""Text-to-image pipelines of diffusers as denoisers of latents, whose condition is a text."""
