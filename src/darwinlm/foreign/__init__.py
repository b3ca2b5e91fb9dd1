"""Pruned models that others made, as our checkpoints."""
