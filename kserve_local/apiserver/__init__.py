"""The Kubernetes API over the store: admission, patches, watches, tables, errors."""
