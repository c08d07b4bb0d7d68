"""The pipeline classes that are known, a file each."""
