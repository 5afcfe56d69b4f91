"""`/openapi.json` and the `/docs` pages: the REST surface for people and tools.

The document names the paths and schemas of a KServe model server, shortly.
"""

from __future__ import annotations

from typing import Any

HTML = b"text/html; charset=utf-8"

_MODEL = {"name": "model_name", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION = {"name": "model_version", "in": "path", "required": True, "schema": {"type": "string"}}

_PATHS: tuple[tuple[str, str, str, str], ...] = (
    ("get", "/", "Alive", ""),
    ("get", "/metrics", "Metrics", ""),
    ("get", "/v1/models", "List the models", "V1"),
    ("get", "/v1/models/{model_name}", "Model ready", "V1"),
    ("post", "/v1/models/{model_name}:predict", "Predict", "V1"),
    ("post", "/v1/models/{model_name}:explain", "Explain", "V1"),
    ("get", "/v2", "Server metadata", "V2"),
    ("get", "/v2/health/live", "Server live", "V2"),
    ("get", "/v2/health/ready", "Server ready", "V2"),
    ("get", "/v2/models", "List the models", "V2"),
    ("get", "/v2/models/{model_name}", "Model metadata", "V2"),
    ("get", "/v2/models/{model_name}/versions/{model_version}", "Model metadata", "V2"),
    ("get", "/v2/models/{model_name}/ready", "Model ready", "V2"),
    ("get", "/v2/models/{model_name}/versions/{model_version}/ready", "Model ready", "V2"),
    ("post", "/v2/models/{model_name}/infer", "Infer", "V2"),
    ("post", "/v2/models/{model_name}/versions/{model_version}/infer", "Infer", "V2"),
    ("post", "/v2/repository/models/{model_name}/load", "Load a model", "V2"),
    ("post", "/v2/repository/models/{model_name}/unload", "Unload a model", "V2"),
)

_PARAMETERS = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": kind} for kind in ("string", "boolean", "integer", "number")]
    },
}
_SCHEMAS: dict[str, Any] = {
    "RequestInput": {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "parameters": _PARAMETERS,
            "data": {"type": "array"},
        },
    },
    "RequestOutput": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
    },
    "InferenceRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/RequestInput"}},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/RequestOutput"}},
        },
    },
}


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1.0 document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, tag in _PATHS:
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {"200": {"description": "Successful Response"}},
        }
        if tag:
            operation["tags"] = [tag]
        parameters = [p for p in (_MODEL, _VERSION) if f"{{{p['name']}}}" in path]
        if parameters:
            operation["parameters"] = parameters
        if path.endswith("/infer"):
            schema = {"$ref": "#/components/schemas/InferenceRequest"}
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "KServe ModelServer", "version": version},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def docs_page(version: str) -> bytes:
    """Return the page that renders `/openapi.json` with swagger-ui (from its public CDN)."""
    cdn = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>KServe ModelServer {version}</title>
<link rel="stylesheet" href="{cdn}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{cdn}/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#swagger-ui"}})</script>
</body>
</html>
""".encode()


OAUTH_REDIRECT_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>OAuth2 redirect</title></head>
<body>This server needs no login.</body>
</html>
"""
