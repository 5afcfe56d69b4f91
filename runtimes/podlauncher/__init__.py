"""Starts the processes of a Pod: plain, or forked from a warm parent. Standard library only.

Runs inside any user's interpreter (Python 3.9 or newer), so nothing here imports kserve_local, a
framework or a package from an index. What to start comes in a *run file*, JSON written by the
process backend; `child` lists its fields.
"""
