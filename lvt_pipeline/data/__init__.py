"""Artefacts on disk; pixels and codes in memory. Knows no model."""
