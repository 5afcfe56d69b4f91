"""The reconcile engine: work queue, controller, result; conditions as all kinds have them. Ignorant
of kinds.
"""
