"""Video files and other sources of frames, read and written."""
