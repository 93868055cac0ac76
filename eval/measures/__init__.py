"""The measures of a generated set. They do not import the report."""
