"""What is remembered between runs: a side of a pass beside kernel and guests."""
