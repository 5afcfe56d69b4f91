"""storageUri to a local directory: providers, cache, credentials. Knows nothing of Pods."""
