"""What can be known before a GPU is busy: counts, FLOPs, memory, and whether all is in place."""
