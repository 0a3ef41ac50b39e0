"""Rebuilds any agent's state on demand: the nearest checkpoint, then the tail of events."""
