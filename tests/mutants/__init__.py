"""Deliberate one-line errors, and the tests that must notice them: `python -m tests.mutants --help`."""
