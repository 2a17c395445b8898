"""The frame tokenizer."""
