"""Stagecoach: a DeepSpeed trainer for diffusion adapters, in stages."""

__version__ = "0.2.0"
