"""`python -m lvt_pipeline ...` is `lvt ...`; so is `torchrun --nproc-per-node N -m lvt_pipeline ...`, N times."""

from lvt_pipeline.cli import main

main()
