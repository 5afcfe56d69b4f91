"""`kserve-local simulate`: what the autoscaler would do with a load, on a virtual clock.

No project has to run, and nothing is started: YAML in, a table, a picture or JSON out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import COMPONENTS, Common, Duration, common
from kserve_local.errors import Invalid, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kserve_local.cli.output import Output
    from kserve_local.simulator.result import Result
    from kserve_local.simulator.service import Service

MOST_RUNS = 200
_STEPS = 20
_TELL_AFTER = 3.0
"""Seconds of silence after which a run says how far it is."""
_INPUTS = ("rate", "service-time", "cold-start")
"""What a sweep may vary besides the service's settings."""
_EXAMPLE = "kserve-local simulate NAME --rate '50+40*sin(2*pi*t/1h)' --service-time 50ms \
--cold-start 3s"


class StepCount(click.ParamType[int]):
    """A number of rows, or `all` (-1)."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "all":
            return -1
        if text.lstrip("-").isdecimal() and int(text) >= -1:
            return int(text)
        self.fail(f"{text!r} is no number of rows and not all.", param, ctx)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What one run is made of, as it was written."""

    service: Service
    rate: str | None
    service_time: str | None
    cold_start: str


@click.command("simulate")
@click.argument("name", required=False)
@click.option(
    "--component",
    type=click.Choice(COMPONENTS),
    help="Which one of the service (default: the predictor).",
)
@click.option("--trace", metavar="FILE", help="Requests to play: CSV or JSON lines.")
@click.option("--rate", metavar="EXPR", help="Requests a second: 100, 50+40*sin(2*pi*t/1h).")
@click.option("--duration", type=Duration(), metavar="DUR", help="Default: the trace's, or 1h.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "even"]),
    default="poisson",
    help="How the requests of a rate are spaced (default: poisson).",
)
@click.option("--service-time", metavar="DIST", help="A request takes: 50ms, exp(50ms), ...")
@click.option("--cold-start", metavar="DIST", help="A new replica takes: 3s, lognormal(3s,8s), ...")
@click.option("--seed", type=int, default=0, help="Of all that is random (default: 0).")
@click.option("--idle-before", type=Duration(), default="0s", help="Ready so long before the load.")
@click.option("--from-zero", is_flag=True, help="The service was scaled to zero before.")
@click.option(
    "--sweep", "sweeps", multiple=True, metavar="KEY=A,B,C", help="Compare settings; repeatable."
)
@click.option("--plot", metavar="FILE", help="Draw the run: FILE.svg, or FILE.png with Pillow.")
@click.option(
    "--steps", type=StepCount(), default=_STEPS, help="Rows of why (default: 20), or all."
)
@common
def command(
    flags: Common,
    name: str | None,
    component: str | None,
    trace: str | None,
    rate: str | None,
    duration: float | None,
    arrivals: Any,
    service_time: str | None,
    cold_start: str | None,
    seed: int,
    idle_before: float,
    from_zero: bool,
    sweeps: tuple[str, ...],
    plot: str | None,
    steps: int,
) -> int:
    """Run the autoscaler on a load, without running anything.

    NAME is an InferenceService of the project, or of the files after -f; without files, KServe's
    defaults are simulated. The load is a --trace or a --rate. Distributions: 50ms, exp(MEAN),
    uniform(A,B), normal(MEAN,SD), lognormal(MEDIAN,P95), empirical(FILE with one duration a line).

    \b
    kserve-local simulate iris --rate 'step(0:10,10m:200)' --duration 1h \\
        --service-time 'exp(50ms)' --cold-start 3s --plot iris.svg
    kserve-local simulate iris --trace monday.csv --cold-start 'lognormal(3s,8s)' \\
        --sweep scaleTarget=5,10,20 --sweep minReplicas=0,1
    """
    from kserve_local.simulator import load, result
    from kserve_local.simulator.durations import distribution
    from kserve_local.simulator.rate import rate as parsed_rate
    from kserve_local.simulator.service import terms_of
    from kserve_local.simulator.simulation import simulate
    from kserve_local.simulator.trace import read

    out = flags.output("simulate")
    varied = _varied(sweeps)
    _check_inputs(trace, rate, cold_start, varied, plot, duration)
    service, held = _service(flags, name, component, out)
    recorded = read(Path(trace), "--trace") if trace is not None else None
    base = _Inputs(service, rate, service_time, cold_start or "")
    runs = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    found: list[Result] = []
    for number, settings in enumerate(runs, 1):
        inputs = _with_settings(base, settings)
        wanted = load.load_of(
            rate=None if inputs.rate is None else parsed_rate(inputs.rate, "--rate"),
            trace=recorded,
            duration=duration,
            service=None
            if inputs.service_time is None
            else distribution(inputs.service_time, "--service-time"),
            spacing=arrivals,
        )
        terms = terms_of(inputs.service)
        if from_zero and not (terms.scaling.scale_to_zero and terms.scaling.min_scale == 0):
            raise UsageError(
                "--from-zero: the service does not scale to zero", hint="--sweep minReplicas=0"
            )
        run = simulate(
            terms,
            wanted,
            distribution(inputs.cold_start, "--cold-start"),
            held=held,
            seed=seed,
            idle_before=idle_before,
            from_zero=from_zero,
            settings=settings,
            progress=_teller(out, f"run {number} of {len(runs)}" if len(runs) > 1 else "simulated"),
        )
        found.append(run)
    if plot is not None:
        _draw(found[0], Path(plot), service.name or "KServe's defaults", out)
    if flags.as_json:
        runs_told = [result.summary(run) for run in found]
        out.envelope({"service": service.name, "seed": seed, "runs": runs_told})
    elif len(found) > 1 or any(len(v) > 1 for v in varied.values()):
        _print_comparison(found, list(varied), out)
    else:
        _print_run(found[0], None if steps < 0 else steps, out)
    return 0


def _varied(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """Return setting -> values, in the order in which they were given.

    Raises:
        UsageError: One is not KEY=A,B,C, comes twice, or they make too many runs.
    """
    found: dict[str, list[str]] = {}
    runs = 1
    for sweep in sweeps:
        key, sign, values = sweep.partition("=")
        parts = _split(values)
        if not sign or not key.strip() or not all(parts):
            raise UsageError(f'--sweep "{sweep}": write KEY=A,B,C, e.g. --sweep scaleTarget=1,5,10')
        if key.strip() in found:
            raise UsageError(
                f'--sweep: "{key.strip()}" is there twice; put all its values into one'
            )
        found[key.strip()] = parts
        runs *= len(parts)
    if runs > MOST_RUNS:
        raise UsageError(f"--sweep: that makes {runs} runs; {MOST_RUNS} are the most")
    return found


def _split(values: str) -> list[str]:
    """Split at the commas that are not in brackets."""
    parts, depth = [""], 0
    for sign in values:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _check_inputs(
    trace: str | None,
    rate: str | None,
    cold_start: str | None,
    varied: Mapping[str, Sequence[str]],
    plot: str | None,
    duration: float | None,
) -> None:
    """Raise UsageError for options that are missing or do not go together."""
    if (trace is None) == (rate is None and "rate" not in varied):
        which = "is needed" if trace is None else "leave no room for each other"
        raise UsageError(f"--trace FILE or --rate EXPR {which}", hint=_EXAMPLE)
    if cold_start is None and "cold-start" not in varied:
        raise UsageError(
            "--cold-start is needed: how long a new replica takes to become ready",
            hint="--cold-start 3s, or --cold-start 'lognormal(3s,8s)' (median, 95th percentile)",
        )
    if duration is not None and duration <= 0:
        raise UsageError(f"--duration {duration:g}s: nothing happens in no time; write e.g. 1h")
    if plot is not None:
        if Path(plot).suffix.lower() not in (".svg", ".png"):
            raise UsageError(f'--plot "{plot}": write FILE.svg or FILE.png')
        if any(len(values) > 1 for values in varied.values()):
            raise UsageError("--plot draws one run; give --sweep one value, or leave it out")


def _service(
    flags: Common, name: str | None, component: str | None, out: Output
) -> tuple[Service, int]:
    """Return what the files say of the service, and how many requests the gateway holds."""
    from kserve_local.controllers.standins import known
    from kserve_local.project.project_files import load_project, read_documents
    from kserve_local.simulator.service import Service, service_of

    settings = flags.settings()
    if name is None and not flags.files and not read_documents(settings):
        out.say("no InferenceService here: KServe's defaults (one replica, 100 in flight each)")
        return Service(), settings.max_held_requests
    project = load_project(settings, known(settings.images))
    if errors := project.errors():
        raise Invalid("\n".join(errors), hint="kserve-local validate")
    if name is not None and "/" in name:
        name = name.rpartition("/")[2]
    found = service_of(project.objects, name, component)
    own = found.name.partition("/")[2].partition(" ")[0]
    return (
        replace(found, pinned=own in settings.pinned, grace=settings.scale_to_zero_grace),
        settings.max_held_requests,
    )


def _with_settings(base: _Inputs, settings: Mapping[str, str]) -> _Inputs:
    from kserve_local.simulator.service import unknown_setting, with_setting

    found = base
    for key, value in settings.items():
        match key:
            case "rate":
                found = replace(found, rate=value)
                continue
            case "service-time":
                found = replace(found, service_time=value)
                continue
            case "cold-start":
                found = replace(found, cold_start=value)
                continue
        try:
            changed = with_setting(found.service, key, value, "--sweep")
        except UsageError as error:
            if "no setting" in error.message:
                raise unknown_setting(key, "--sweep", _INPUTS) from error
            raise
        found = replace(found, service=changed)
    return found


def _teller(out: Output, what: str) -> Callable[[float], None]:
    """Return what says now and then how far a run is."""
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_AFTER:
            last = time.monotonic()
            out.say(f"{what}: {share:.0%}")

    return tell


def _draw(run: Result, path: Path, name: str, out: Output) -> None:
    from kserve_local.simulator.chart import picture
    from kserve_local.simulator.report import named

    title = " ".join(filter(None, (name, named(run.settings))))
    shapes = picture(run, title)
    try:
        if path.suffix.lower() == ".png":
            from kserve_local.simulator.png import png

            path.write_bytes(png(shapes))
        else:
            from kserve_local.simulator.svg import svg

            path.write_text(svg(shapes), encoding="utf-8")
    except OSError as error:
        raise UsageError(f'--plot "{path}" cannot be written: {error.strerror}') from error
    out.say(f"picture: {path}")


def _print_run(run: Result, most: int | None, out: Output) -> None:
    from kserve_local.cli.output import table
    from kserve_local.simulator import report

    rows = report.lines(run)
    out.data(table(rows[1:], rows[0]))
    shown, left = report.steps(run, most)
    if not shown and not left:
        out.data("\nThe number of replicas never changed.")
        return
    if shown:
        out.data("\n" + table(shown, report.STEPS_HEADER))
    if left:
        out.say(f"{left} more step{'s' if left > 1 else ''}: --steps all")


def _print_comparison(runs: Sequence[Result], keys: Sequence[str], out: Output) -> None:
    from kserve_local.cli.output import table
    from kserve_local.simulator import report

    rows = [(*(run.settings[key] for key in keys), *report.sweep_row(run)) for run in runs]
    out.data(table(rows, report.columns(keys)))
