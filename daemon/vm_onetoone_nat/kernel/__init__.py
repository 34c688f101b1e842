"""The kernel side: rules, addresses, bridge ports, connections, notifications."""
