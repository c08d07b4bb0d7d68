"""How a run looks at its model and measures it: models of images, of texts, and pipelines by pairs."""
