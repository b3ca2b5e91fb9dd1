"""Refit of the chosen model on its own inputs: a closed-form pass over its blocks after the search."""
