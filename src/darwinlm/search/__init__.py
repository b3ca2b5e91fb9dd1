"""Evolution over levels with training-aware selection (Algorithm 1 of arXiv 2502.07780)."""
