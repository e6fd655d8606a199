"""One file for each experiment; `get_config(arg)` returns it, "smoke" a variant of a minute."""
