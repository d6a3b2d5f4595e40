"""Camera conditioning: Plücker rays and camera adapters."""
