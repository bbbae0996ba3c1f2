"""Attention layers of others, and the harness that measures all of them side by side."""
