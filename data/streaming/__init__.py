"""From shards to batches: order, plan, windows, mixture, read-ahead."""
