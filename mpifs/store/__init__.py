"""A worker's chunk store and its service (message → call → reply)."""
