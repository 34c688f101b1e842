"""What the kernel should hold, and how a pass gets there. Pure."""
