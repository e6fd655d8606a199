"""A trained network that experiments compress: its data, its weights, its calibration images."""
