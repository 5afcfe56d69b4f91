"""KServe-compatible sklearnserver: `python -m sklearnserver`."""
