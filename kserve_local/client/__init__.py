"""Typed client of the Kubernetes API for CLI, TUI and dev loop, and the kubeconfig. No server
code.
"""
