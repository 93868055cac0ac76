"""Frozen feature networks, and the feature blocks they write."""
