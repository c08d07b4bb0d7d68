"""Runs whose networks are sharded: which, and how; what the leader alone does with them; their checkpoints."""
