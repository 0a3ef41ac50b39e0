"""The command that builds tables anew from the log."""
