"""Guidance behind the denoiser's first convolution: types, their rendering and encoders, for both backbones."""
