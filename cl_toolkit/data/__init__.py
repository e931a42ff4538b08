"""What is trained on and asked: streams and their regimes, rows, the store of examples."""
