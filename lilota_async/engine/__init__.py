"""Supervising tasks: what is claimed, what became of it, who is told; no SQL, no processes."""
