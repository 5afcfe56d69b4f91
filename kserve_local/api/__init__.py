"""The nouns: Kubernetes resource types, their schemas, defaults and validation. Pure; no I/O
beyond packaged data.
"""
