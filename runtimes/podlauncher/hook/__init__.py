"""A folder for PYTHONPATH: holds `sitecustomize`, nothing else. Never imported as a package."""
