"""The calls that the gateway keeps, for `kserve-local requests`, `replay`, `diff` and the dev loop.

`GET /apis/kserve-local.dev/v1/requests` answers `{"requests": [...]}`, the newest last: of
`namespace`, `name` and `component` where given, the newest `last`; with `bodies=true` also headers,
body and answer. `.../requests/ID` answers the one whose id is or begins with ID, with all of it.
The gateway has redacted them; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from kserve_local.client.project import REQUESTS
from kserve_local.errors import BadRequest, NotFound
from kserve_local.supervisor.gateway_process import GatewayProcess

_WHICH = ("namespace", "name", "component")


def routes(gateway: GatewayProcess) -> Sequence[BaseRoute]:
    """Return the routes that the API server serves."""

    async def listed(request: Request) -> Response:
        query = request.query_params
        last = query.get("last", "0")
        if not last.isdecimal():
            raise BadRequest(f'last: "{last}" is no number')
        found = await gateway.requests(
            **{key: query.get(key, "") for key in _WHICH},
            last=int(last),
            bodies=query.get("bodies") == "true",
        )
        return JSONResponse({"requests": found})

    async def one(request: Request) -> Response:
        query = request.query_params
        wanted = unquote(request.path_params["id"])
        which = {key: query.get(key, "") for key in _WHICH}
        found = await gateway.requests(**which, id=wanted, bodies=True)
        if not found:
            of = f" of {which['name']}" if which["name"] else ""
            raise NotFound(f'no recorded request{of} has an id that begins with "{wanted}"')
        return JSONResponse(found[-1])

    return [
        Route(REQUESTS, listed, methods=["GET"]),
        Route(f"{REQUESTS}/{{id:path}}", one, methods=["GET"]),
    ]
