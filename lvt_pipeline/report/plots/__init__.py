"""Plots: the figures of the paper on disk, each as PNG and SVG with its numbers as CSV, and charts inside a page."""
