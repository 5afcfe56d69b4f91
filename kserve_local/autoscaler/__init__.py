"""How many replicas there should be: Knative's pod autoscaler (KPA) and Kubernetes' HPA.

The policies are pure: no I/O and no clock, time comes in as an argument (seconds, one clock of
the caller's), so that the live loops and the simulator run the same code. `loop` and `hpa_loop`
read the store and write what was decided.
"""
