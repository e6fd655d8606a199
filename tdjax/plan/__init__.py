"""What becomes of each layer, from shapes alone."""
