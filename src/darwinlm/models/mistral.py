"""Mistral 7B and Nemo: Llama's block, optionally with a sliding window."""

from darwinlm.models.family import Family

MISTRAL = Family(model_type="mistral", prefix="Mistral")
