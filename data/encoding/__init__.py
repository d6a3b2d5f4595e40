"""Encoders of raw data: frozen models from local paths, tiny ones for tests and the demo, music features."""
