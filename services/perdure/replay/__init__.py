"""Replay: the log kept in an archive, and tables built anew from it."""
