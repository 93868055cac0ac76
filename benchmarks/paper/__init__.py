"""Code that makes the tables of docs/results.md."""
