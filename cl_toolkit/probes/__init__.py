"""What is measured while training runs. A probe watches; it never changes the training trajectory (law 5)."""
