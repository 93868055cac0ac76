"""Data plane: shards, manifests, streams, encoders, and the World of processes."""
