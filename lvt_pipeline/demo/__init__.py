"""The procedural videos of the demo."""
