"""Real servers for tests and benchmarks: found, started, killed and started again."""
