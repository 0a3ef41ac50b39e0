"""The command for records that could not be recorded."""
