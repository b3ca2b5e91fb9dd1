"""Checkpoints as GGUF files for llama.cpp: weights, metadata and tokenizer in one file."""
