"""Running the stages of a work directory, in order and only where something changed."""
