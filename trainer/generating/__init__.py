"""From trained weights to files: requests read, shared out over ranks, answered and sealed; pages that compare."""
