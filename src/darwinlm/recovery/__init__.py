"""Post-training of a checkpoint, pruned or dense: cross entropy, distillation, adapters; on one device or many."""
