"""KServe-compatible torchserver: `python -m torchserver`."""
