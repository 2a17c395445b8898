"""Which clips a dataset has, and their splits."""
