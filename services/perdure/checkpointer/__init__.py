"""Saves what an agent has become: states, when it is worth it, and objects, as they are given."""
