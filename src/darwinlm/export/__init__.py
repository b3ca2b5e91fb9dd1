"""Pruned models as checkpoints that others load."""
