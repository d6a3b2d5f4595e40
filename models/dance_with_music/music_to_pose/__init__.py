"""MusicToPose: the network, its heads, beat metrics and ONNX export."""
