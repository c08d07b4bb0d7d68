"""TiUE (2505.21960): K steps of a UNet for one pass of its encoder, whose decoder runs once on all K times."""
