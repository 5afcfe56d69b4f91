"""The data plane, a process of its own. Never touches the store."""
