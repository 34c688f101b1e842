"""The configuration: files, keys and values."""
