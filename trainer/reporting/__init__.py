"""What a run shows and keeps: progress, metrics, pictures, the report."""
