"""Memory: texts an agent keeps, found again by meaning and by word."""
