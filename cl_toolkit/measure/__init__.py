"""What is asked of a model, and the numbers that are made of its answers."""
