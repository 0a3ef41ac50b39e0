"""What an agent process holds: the store it connects to, and the agents it opens."""
