"""Parameter pytrees: kernels to factors, and back."""
