"""Built-in Kubernetes objects as YAML, loaded like any user's YAML. No code."""
