"""Identity modulation: per-token offsets of FLUX's AdaLN."""
