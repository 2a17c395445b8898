"""Frames on disk: webdataset shards and their receipts."""
