"""Frozen feature networks, and the feature blocks that they write."""
