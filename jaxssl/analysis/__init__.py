"""Pictures: what a run's data look like."""
