"""Samples, shards and their order. Imports nothing of the project."""
