"""Frequency self-attention for dense prediction (FsaNet, arXiv 2211.15595)."""
