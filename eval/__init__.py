"""Measures of a generation, and the report that shows them."""
