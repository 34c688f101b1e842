"""Measures speed and scale side by side in the lab's namespaces; `bench/run.sh` runs it."""
