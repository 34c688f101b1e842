"""libvirt's side of a pass."""
