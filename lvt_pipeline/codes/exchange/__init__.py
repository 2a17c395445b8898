"""Codes to and from other formats."""
