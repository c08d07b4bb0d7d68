"""Speed and memory of steps and sampling, each beside the passes of the bare network that it cannot do without."""
