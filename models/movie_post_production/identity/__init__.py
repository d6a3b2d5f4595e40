"""Identity loss: decoded tiles seen by DINOv2."""
