"""What a video file holds: its streams, its packets, the times of its frames, and whether it is whole."""
