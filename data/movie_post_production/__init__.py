"""MoviePostProduction's samples: schema, the guide's raw layout, the builder's job and a synthetic source."""
