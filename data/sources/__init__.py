"""Other people's data: recognised, read and imported."""
