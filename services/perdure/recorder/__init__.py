"""The recorder: gives every event its place, once."""
