"""FantasyWorld's samples: schema, cameras, the builder from the raw layout and a synthetic source."""
