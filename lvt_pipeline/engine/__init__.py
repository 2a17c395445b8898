"""The loops and the workers: training, checkpoints, encoding, executors."""
