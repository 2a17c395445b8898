"""The report page, the figures and the contact sheets."""
