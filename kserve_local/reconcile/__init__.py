"""The reconcile engine: work queue, controller, result. Ignorant of kinds."""
