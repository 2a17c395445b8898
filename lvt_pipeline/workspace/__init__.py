"""A work directory as a whole: all stages together, status and reasons."""
