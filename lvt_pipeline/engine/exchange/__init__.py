"""Codes in the files of other tools, a module for each format. `engine.exporting` writes them all."""
