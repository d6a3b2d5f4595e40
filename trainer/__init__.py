"""The loop: recipe, trainable subset, engine, checkpoints, monitoring. Names no family."""
