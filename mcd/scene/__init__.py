"""The static world between frames: camera motion, residual motion, predictions of the scene nets."""
