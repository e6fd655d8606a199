"""Experiments that are killed again and again: `python -m benchmarks.kills [--points=100]`.

Each of the four experiments, as small as it can be, runs once undisturbed. Then it is killed (-9)
before or after a call that changes what is on the disk, or when half of a line of its journal is
written, started again, killed again some calls later, until it comes to its end; and so on, from
an empty folder, until there were enough kills. Whenever it ends its tables must be equal to the
byte to those of the undisturbed run, its journal must hold the same lines, and nothing unfinished
may be left. Exits with 1 where that is not so. Needs fork and /proc.

With `--group=N` it is N processes that share the work of a run, of which one or two are killed: at
such a call, or after some time. What the others leave must be the same. Where the last death came
when no other was left in the group, another number of processes goes on, as a user would start.
"""
