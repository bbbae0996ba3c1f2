"""Attention layers and networks, measured side by side: `fsanet bench`."""
