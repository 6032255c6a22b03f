"""Frozen features, probes on them, and what is watched while training."""
