"""Benchmarks: tasks, protocols, pass@k and published scores."""
