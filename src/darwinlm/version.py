"""The version, where every room can read it: checkpoints say which one wrote them."""

__version__ = "0.1.0"
