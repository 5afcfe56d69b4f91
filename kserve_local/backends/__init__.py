"""Make replicas exist: process groups now, containers later. Keeps no wishes of its own."""
