"""CHAMP on Stable Diffusion 1.5: denoising and reference UNets, motion modules, guidance encoders."""
