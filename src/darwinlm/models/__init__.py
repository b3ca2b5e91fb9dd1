"""The only architecture knowledge: which modules can shrink, how, and how weights are read."""
