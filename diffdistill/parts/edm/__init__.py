"""Foreign weights into model folders; nothing that is in a foreign file runs."""
