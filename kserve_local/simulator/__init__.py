"""What would the autoscaler do? One service's requests and replicas on a virtual clock.

The policy (`autoscaler.revision_scaler`), the queues (`gateway.breaker`) and the choice of a
replica (`gateway.balancer`) are the ones that run in a project; only time, replicas and models are
pretended. Reading order: `simulation` (the clock and the autoscaler), `path` (a request's way),
`service` (settings out of YAML), `load` (arrivals), `result` (what comes out).
"""
