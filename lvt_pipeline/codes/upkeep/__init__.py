"""Keeping a code store small and whole: garbage collection, compaction, repair."""
