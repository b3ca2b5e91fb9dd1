"""Engines that serve a checkpoint as it is, once DarwinLM is installed beside them."""
