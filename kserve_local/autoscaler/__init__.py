"""How many replicas a revision should have: Knative's pod autoscaler (KPA).

Everything here is pure: no I/O and no clock, time comes in as an argument (seconds, one clock of
the caller's), so that the live loop and the simulator run the same code. What reads the store and
writes scales belongs elsewhere.
"""
