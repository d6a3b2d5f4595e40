"""What a sample is written as: video with sound, depth, point clouds, sheets. No models, and torch only where cameras
are."""
