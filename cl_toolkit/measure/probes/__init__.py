"""Probes: what is measured while a model learns."""
