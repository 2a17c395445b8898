"""The long jobs between artefacts: everything but training and evaluation."""
