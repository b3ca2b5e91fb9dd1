"""Formats that weights are stored in: what they take, and what they leave of a matrix."""
