"""The ports on one folder: SQLite for everything but large objects, which are files."""
