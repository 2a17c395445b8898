"""Training of both networks."""
