"""Codes on disk: the store, its writers and readers."""
