"""KServe-compatible xgbserver: `python -m xgbserver`."""
