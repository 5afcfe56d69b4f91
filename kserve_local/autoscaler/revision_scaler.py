"""One revision's autoscaler: windows, policy state, and the way from a decision to replicas.

It owns what Knative spreads over collector, decider and PodAutoscaler. It has no clock: who runs it
(the live loop, the simulator) says what time it is and carries out what it says. The calls:

    arrived(now), record(stat, now)   requests and reports come in; True: tick at once
    tick(ready, now)                  every `kpa.TICK` seconds, and when told to
    apply(ready, now, ...)            after each tick, when Pods become ready or end, and at
                                      `Applied.again`; calling it more often changes nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kserve_local.autoscaler import kpa, to_zero
from kserve_local.autoscaler.bounds import Activity, activity, applied, bounds
from kserve_local.autoscaler.mode import Mode, mode_of
from kserve_local.autoscaler.sampling import Sampler
from kserve_local.interfaces.scaling import (
    Decision,
    Observation,
    ScalingConfig,
    ScalingPolicy,
)
from kserve_local.interfaces.stats import RequestStat


@dataclass(frozen=True, slots=True)
class Applied:
    """What a revision should be now.

    Args:
        want: Replicas as status shows them; -1: not known yet, or a start is let finish.
        replicas: Scale to write; None: leave it.
        mode: Path of its requests.
        activity: Its conditions.
        again: When to apply again at the latest; None: when something changes.
        reason / message: Why `want` is what it is: the decision's, or of the bound or the step to
            zero that overrode it.
    """

    want: int
    replicas: int | None
    mode: Mode
    activity: Activity
    again: float | None
    reason: str
    message: str


class RevisionScaler:
    """Windows and state of one revision.

    Args:
        ready: Replicas that are ready now: more than one starts in panic, as after a restart.
        activity: Where it stood before, after a restart; None: it is new.
        policy: How averages become a desired count.

    Attributes:
        decision: The published one.
        reachable: A route refers to the revision; set it when that changes.
    """

    __slots__ = (
        "_mode",
        "_mode_since",
        "_policy",
        "_sampler",
        "_state",
        "activity",
        "config",
        "decision",
        "reachable",
    )

    def __init__(
        self,
        config: ScalingConfig,
        *,
        ready: int,
        now: float,
        activity: Activity | None = None,
        reachable: bool = True,
        policy: ScalingPolicy[Any] = kpa,
    ) -> None:
        self.config = config
        self.reachable = reachable
        self.activity = activity or Activity("Activating", now)
        self._policy = policy
        self._sampler = Sampler(config)
        self._state, self.decision = policy.start(config, ready=ready, now=now)
        self._mode: Mode = "Proxy"
        self._mode_since = now

    @property
    def mode(self) -> Mode:
        """Path of the requests as last applied."""
        return self._mode

    def arrived(self, now: float) -> bool:
        """Take note of a request; True: `tick` at once, it is the first one at zero."""
        return self._sampler.arrived(now) and self.decision.desired <= 0

    def record(self, stat: RequestStat, now: float) -> bool:
        """Take one periodic report; True: `tick` at once, there is traffic at zero."""
        return self._sampler.record(stat, now) and self.decision.desired == 0

    def tick(self, ready: int, now: float) -> Decision:
        """Decide, publish and return; without figures the decision before stays."""
        self._sampler.scrape(ready, now)
        averages = self._sampler.averages(now)
        if averages is not None:
            seen = Observation(*averages, ready, self.reachable)
            self._state, self.decision = self._policy.decide(
                self._state, seen, self.config, now=now
            )
        return self.decision

    def is_silent(self, now: float) -> bool:
        """Whether there are no figures: without replicas no tick would change anything."""
        return self._sampler.averages(now) is None

    def apply(self, ready: int, now: float, *, probed: bool = True) -> Applied:
        """Return what the published decision means after bounds, activity and the way to zero.

        Args:
            probed: A request to the revision's address would reach the activator. The gateway is
                its own activator: say False only while it does not have the route yet.
        """
        want, replicas, again, reason, message = self._scale(now, probed)
        mode = mode_of(want, self.decision.excess_burst_capacity, ready=ready)
        if mode != self._mode:
            self._mode, self._mode_since = mode, now
        self.activity = activity(
            self.activity, want, ready, self.config, reachable=self.reachable, now=now
        )
        return Applied(want, replicas, mode, self.activity, again, reason, message)

    def reconfigure(self, config: ScalingConfig) -> None:
        """Take new settings (the ConfigMap was edited); windows keep what fits."""
        if config != self.config:
            self.config = config
            self._sampler.reconfigure(config)

    def _scale(self, now: float, probed: bool) -> tuple[int, int | None, float | None, str, str]:
        decision, now_active = self.decision, self.activity
        desired = decision.desired
        if desired < 0 and now_active.status != "Activating":
            return desired, None, None, decision.reason, decision.message
        least, most = bounds(
            self.config, reachable=self.reachable, initialized=now_active.initialized
        )
        wanted = applied(desired, least, most)
        if wanted == 0:
            step = to_zero.step(
                now_active,
                self.config,
                proxy_since=self._mode_since if self._mode == "Proxy" else None,
                probed=probed,
                reachable=self.reachable,
                now=now,
            )
            written = step.want if step.write else None
            return step.want, written, step.again, step.reason, step.message
        reason, message = decision.reason, decision.message
        if wanted < desired:
            reason, message = "MaxScale", f"{message}; max-scale is {most}"
        elif wanted > desired and self.config.min_scale == wanted:
            reason, message = "MinScale", f"{message}; min-scale is {wanted}"
        elif wanted > desired:
            reason, message = "InitialScale", f"{message}; initial-scale is {wanted}"
        return wanted, wanted, None, reason, message
