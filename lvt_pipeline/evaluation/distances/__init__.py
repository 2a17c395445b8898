"""Distances that networks measure: FVD and KVD between sets of videos, LPIPS between pictures."""
