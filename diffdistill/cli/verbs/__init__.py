"""The verbs, a file each: its flags, and what runs it."""
