"""Latent video transformers: resumable stages and precomputed code stores (Rakhimov et al. 2020)."""
