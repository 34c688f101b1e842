"""The values that all other modules share. Pure."""
