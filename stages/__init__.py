"""The click modules of the `lvt` command, one per stage."""

DISTRIBUTION = "lvt-pipeline"
