"""Forecasts a run's steps, disk use and memory without running it."""
