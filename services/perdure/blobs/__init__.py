"""Checkpoint storage through fsspec: a folder, S3, or what else it knows."""
