"""The measures of a generated set. They know no report."""
