"""Selection strategies, one per file."""
