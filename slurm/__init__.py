"""SLURM: configuration -> job scripts -> the chain of jobs."""
