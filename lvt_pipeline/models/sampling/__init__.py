"""Codes from a trained prior."""
