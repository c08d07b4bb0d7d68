"""A pipeline without an adapter: its call of its network is read off the pipeline itself, and replayed."""
