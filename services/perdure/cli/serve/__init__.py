"""The command that runs the services of a cluster."""
