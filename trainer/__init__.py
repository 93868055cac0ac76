"""Trainer and sampler: shards -> weights -> new shards."""
