"""The paper's tables and figures on any dataset: `lvt reproduce`.

`published` holds the paper's numbers, `experiments` lists which tokenizers and priors a table needs, `running` makes
the missing ones, `tables` prints our numbers next to the published ones.
"""
