"""What is sent to the kernel and received from it: bytes and JSON to and from values. Pure."""
