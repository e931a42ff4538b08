"""One run: its sequence, its state on disk, its record, what it is known by."""
