"""How one task is learned: one file per objective."""
