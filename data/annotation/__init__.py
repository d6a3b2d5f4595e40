"""What raw data lacks, found by local models: poses, depth, cameras, boxes, captions, shot cuts."""
