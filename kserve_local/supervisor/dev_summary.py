"""What the dev loop did, for `up`, the dashboard and whoever asks.

`GET .../activity?since=N&wait=SECONDS`: what was done after number N, or nothing in time.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import BaseRoute

from kserve_local.apiserver.app import json_route
from kserve_local.client.project import ACTIVITY
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.problems import Problems
from kserve_local.errors import Invalid

LONGEST_WAIT = 30.0


def routes(problems: Problems, activity: Activity) -> Sequence[BaseRoute]:
    """Return the routes."""

    async def news(request: Request) -> object:
        try:
            since = int(request.query_params.get("since") or 0)
            patience = min(float(request.query_params.get("wait") or 0), LONGEST_WAIT)
        except ValueError as error:
            raise Invalid("since is a number, wait are seconds") from error
        if patience > 0:
            await activity.wait(since, patience=patience)
        return {
            "activity": activity.since(since),
            "replacing": len(activity.replacing),
            "problems": [problem.shown() for problem in problems.all()],
        }

    return [json_route(ACTIVITY, news, "GET")]
