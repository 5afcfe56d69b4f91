"""What every model server shares: protocols, tensors, batching, metrics; no framework packages."""
