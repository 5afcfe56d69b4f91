"""kserve-local: KServe on one machine, without Kubernetes. Sub-packages hold the code; this file
only the version.
"""

__version__ = "0.1.0"
