"""Continual-learning training for language models: strategies, task streams, forgetting curves."""
