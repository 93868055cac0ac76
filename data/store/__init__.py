"""Sealed folders on disk: manifests, shards, indexes of samples, remote copies."""
