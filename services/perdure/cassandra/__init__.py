"""Events, heads and saved states in Cassandra."""
