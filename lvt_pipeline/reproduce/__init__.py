"""The paper's tables and figures on any dataset: `lvt reproduce`.

`published` holds what the paper printed, `experiments` says which tokenizers and priors a table needs, `running` makes
what is missing, `tables` puts our numbers beside the published ones.
"""
