"""The daemon, and what it shows."""
