"""The samplers, a file each (or a tuple of rows, where one function or one library computes several)."""
