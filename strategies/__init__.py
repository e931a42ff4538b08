"""How other tasks are kept while one is learned: one file per method."""
