"""Heads for depth, points and cameras, and their targets."""
