"""Where the bytes of shards come from: local folders, HTTP, object stores, and a cache on the node."""
