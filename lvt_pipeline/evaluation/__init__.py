"""Measuring and showing: metrics, figures, the report page."""
