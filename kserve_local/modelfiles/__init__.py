"""Tells what model files are by their bytes. No framework is imported and nothing is unpickled."""
