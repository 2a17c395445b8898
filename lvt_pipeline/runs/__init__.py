"""Training runs on disk: reading, writing, checkpoints."""
