"""Many runs: a comparison's cells, workers, tuning, planning."""
