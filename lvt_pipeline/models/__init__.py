"""The two networks of the paper: tensors in, tensors out. Reads no file."""
