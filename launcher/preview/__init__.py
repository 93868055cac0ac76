"""What a run will do and take, without doing it."""
