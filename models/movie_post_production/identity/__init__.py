"""Identity loss: decoded windows seen by DINOv2."""
