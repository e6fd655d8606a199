"""tdjax beside its peers, both sides in one process; every figure with its spread."""
