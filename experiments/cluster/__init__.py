"""Starting one run on many machines: scripts for SLURM, a TPU pod, or hosts reached by ssh."""
