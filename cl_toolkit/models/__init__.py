"""Kinds of models, and how examples become tensors. The only door to transformers' models and to peft."""
