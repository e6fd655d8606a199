"""Second moments of what flows through the layers."""
