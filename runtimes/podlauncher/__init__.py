"""Starts the processes of a Pod: plain or forked from a warm parent. Standard library only."""
