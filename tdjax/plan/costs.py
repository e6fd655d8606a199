"""What of a network a budget limits."""

PARAMS, MACS, BYTES, TIME = "params", "macs", "bytes", "time"
# In the order of the columns of costs; time has one where it is known.
COUNTED = (PARAMS, MACS, BYTES)
COSTS = (*COUNTED, TIME)
# Another name of time, for a batch of one.
LATENCY = "latency at batch 1"
