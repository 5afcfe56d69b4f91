"""Type tables of the API kinds and the compiler that turns them into `api/schemas.json`.

Belongs here: what the Kubernetes API types look like, written as compact tables, and the code that
reads them. Runs at development time only (`python -m kserve_local.api.schemagen.compile`); nothing
at run time imports this package. Does not belong here: checking objects (`api/schema.py`).
"""
