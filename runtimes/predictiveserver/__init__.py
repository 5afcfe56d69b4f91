"""KServe-compatible predictiveserver: `python -m predictiveserver`."""
