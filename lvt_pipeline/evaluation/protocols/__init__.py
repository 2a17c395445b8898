"""The paper's protocols: several sampling runs, each measured, and one result of all."""
