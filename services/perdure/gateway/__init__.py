"""The gateway: the one HTTP address that agent processes read from."""
