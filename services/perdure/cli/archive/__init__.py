"""The command that keeps the log in an archive."""
