"""Methods to compare with: one file each, each returns a genome of the same space."""
