"""The memory index on Weaviate."""
