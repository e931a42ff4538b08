"""Trackers: listeners that hand a run's numbers to other programs."""
