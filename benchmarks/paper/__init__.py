"""What the tables of docs/results.md are made by."""
