"""What a model is worth: perplexity and KL on held-out text, and how fast it is."""
