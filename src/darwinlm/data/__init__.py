"""Text from where it lies, as fixed token blocks in disjoint, named splits."""
