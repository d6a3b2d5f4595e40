"""Finished shards: checking, repairing, adopting and looking at them."""
