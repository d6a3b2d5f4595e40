"""Checkpoints: the current trainables, the optimizer and the position; atomic, hashed, trainable-only.

``checkpoint_<step>/`` holds ``model.safetensors`` (fp32 master weights by the network's names), ``ema.safetensors``
where an average is kept, ``optimizer/rank_<rank>.safetensors`` (Adam's moments as each rank holds them, and which
elements of which parameters these are), ``training_state.json``, ``config.yaml`` (the recipe), ``adapter.json`` (what
the weights are, so that they open without the run) and ``manifest.json``.
"""
