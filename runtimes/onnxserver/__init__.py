"""KServe-compatible onnxserver: `python -m onnxserver`."""
