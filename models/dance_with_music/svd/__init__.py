"""StableAnimator on Stable Video Diffusion: its UNet, attention and pose net."""
