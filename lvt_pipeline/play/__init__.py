"""Steering a prior by hand: a clip that is continued frame by frame, on a page of this machine."""
