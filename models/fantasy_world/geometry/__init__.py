"""The geometry branch: bridge, blocks, and its exchange with the video stream."""
