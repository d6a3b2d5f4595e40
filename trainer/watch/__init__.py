"""Heartbeats of all ranks, who watches them, and what the ranks and their nodes are doing (docs/monitoring.md)."""
