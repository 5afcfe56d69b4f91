"""KServe-compatible lgbserver: `python -m lgbserver`."""
