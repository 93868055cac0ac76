"""What each phase of a run does."""
