"""Windows of codes for training: caches, orders, batches."""
