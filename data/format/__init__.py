"""The shard format: tars, index, manifest, schema, decoding."""
