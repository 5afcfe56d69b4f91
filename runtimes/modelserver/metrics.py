"""Prometheus metrics of one server process, as text: request histograms by model, and what the
Prometheus client library tells of a Python process.

Names, labels and bounds are KServe's. Writing the text by hand keeps a package and its locks out of
the request path; an observation is a bisection and three additions.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"

_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_NAMES = (
    ("request_preprocess_seconds", "pre-process request latency"),
    ("request_predict_seconds", "prediction request latency"),
    ("request_postprocess_seconds", "post-process request latency"),
    ("request_explain_seconds", "explain request latency"),
)


class Histogram:
    """Observed seconds of one step of one model."""

    __slots__ = ("buckets", "created", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0
        self.created = time.time()

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds


class ModelMetrics:
    """The four histograms of a model; each appears with its first observation."""

    __slots__ = ("explain", "postprocess", "predict", "preprocess")

    def __init__(self) -> None:
        self.preprocess: Histogram | None = None
        self.predict: Histogram | None = None
        self.postprocess: Histogram | None = None
        self.explain: Histogram | None = None

    def predicted(self, preprocess: float, predict: float, postprocess: float) -> None:
        """Count one prediction, seconds per step."""
        first, second, third = self.preprocess, self.predict, self.postprocess
        if first is None or second is None or third is None:
            first = self.preprocess = first or Histogram()
            second = self.predict = second or Histogram()
            third = self.postprocess = third or Histogram()
        if preprocess <= 0.005 and predict <= 0.005 and postprocess <= 0.005:
            # What `observe` would do, for the usual request.
            first.buckets[0] += 1
            first.total += preprocess
            second.buckets[0] += 1
            second.total += predict
            third.buckets[0] += 1
            third.total += postprocess
        else:
            first.observe(preprocess)
            second.observe(predict)
            third.observe(postprocess)

    def explained(self, preprocess: float, explain: float, postprocess: float) -> None:
        """Count one explanation, seconds per step."""
        self.preprocess = self.preprocess or Histogram()
        self.explain = self.explain or Histogram()
        self.postprocess = self.postprocess or Histogram()
        self.preprocess.observe(preprocess)
        self.explain.observe(explain)
        self.postprocess.observe(postprocess)


class Registry:
    """All metrics of the process."""

    def __init__(self) -> None:
        self._models: dict[str, ModelMetrics] = {}

    def model(self, name: str) -> ModelMetrics:
        """Return the metrics of a model; kept when the model is unloaded."""
        metrics = self._models.get(name)
        if metrics is None:
            metrics = self._models[name] = ModelMetrics()
        return metrics

    def text(self, *, openmetrics: bool) -> bytes:
        """Return everything in the Prometheus text format, or in OpenMetrics."""
        lines = [*_python(openmetrics), *_process(openmetrics), *self._histograms(openmetrics)]
        if openmetrics:
            lines.append("# EOF")
        return ("\n".join(lines) + "\n").encode()

    def _histograms(self, openmetrics: bool) -> Iterator[str]:
        for name, documentation in _NAMES:
            step = name.split("_")[1]
            yield f"# HELP {name} {documentation}"
            yield f"# TYPE {name} histogram"
            created: list[str] = []
            for model, metrics in self._models.items():
                histogram: Histogram | None = getattr(metrics, step)
                if histogram is None:
                    continue
                label = f'model_name="{_escape(model)}"'
                count = 0
                for bound, seen in zip(
                    (*map(repr, _BOUNDS), "+Inf"), histogram.buckets, strict=True
                ):
                    count += seen
                    yield f'{name}_bucket{{le="{bound}",{label}}} {float(count)}'
                yield f"{name}_count{{{label}}} {float(count)}"
                yield f"{name}_sum{{{label}}} {histogram.total!r}"
                made = f"{name}_created{{{label}}} {histogram.created!r}"
                if openmetrics:
                    yield made
                else:
                    created.append(made)
            if created:
                yield f"# HELP {name}_created {documentation}"
                yield f"# TYPE {name}_created gauge"
            yield from created


def accepts_openmetrics(accept: str) -> bool:
    """Return whether an Accept header asks for OpenMetrics."""
    return any(
        part.split(";", 1)[0].strip() == "application/openmetrics-text"
        for part in accept.split(",")
    )


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _python(openmetrics: bool) -> Iterator[str]:
    stats = gc.get_stats()
    for name, key, documentation in (
        ("python_gc_objects_collected", "collected", "Objects collected during gc"),
        (
            "python_gc_objects_uncollectable",
            "uncollectable",
            "Uncollectable objects found during GC",
        ),
        (
            "python_gc_collections",
            "collections",
            "Number of times this generation was collected",
        ),
    ):
        family = name if openmetrics else f"{name}_total"
        yield f"# HELP {family} {documentation}"
        yield f"# TYPE {family} counter"
        for generation, stat in enumerate(stats):
            yield f'{name}_total{{generation="{generation}"}} {float(stat[key])}'
    major, minor, patch = platform.python_version_tuple()
    yield "# HELP python_info Python platform information"
    yield "# TYPE python_info gauge"
    yield (
        f'python_info{{implementation="{platform.python_implementation()}",major="{major}",'
        f'minor="{minor}",patchlevel="{patch}",version="{platform.python_version()}"}} 1.0'
    )


def _process(openmetrics: bool) -> Iterator[str]:
    """Process figures, from /proc where there is one."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    family = "process_cpu_seconds" if openmetrics else "process_cpu_seconds_total"
    yield f"# HELP {family} Total user and system CPU time spent in seconds."
    yield f"# TYPE {family} counter"
    yield f"process_cpu_seconds_total {usage.ru_utime + usage.ru_stime!r}"
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        boot = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime")
        )
        open_fds = len(os.listdir("/proc/self/fd"))
    except (OSError, StopIteration):
        return
    for name, value, documentation in (
        ("process_virtual_memory_bytes", float(stat[20]), "Virtual memory size in bytes."),
        (
            "process_resident_memory_bytes",
            float(stat[21]) * os.sysconf("SC_PAGE_SIZE"),
            "Resident memory size in bytes.",
        ),
        (
            "process_start_time_seconds",
            boot + float(stat[19]) / os.sysconf("SC_CLK_TCK"),
            "Start time of the process since unix epoch in seconds.",
        ),
        ("process_open_fds", float(open_fds), "Number of open file descriptors."),
        (
            "process_max_fds",
            float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            "Maximum number of open file descriptors.",
        ),
    ):
        yield f"# HELP {name} {documentation}"
        yield f"# TYPE {name} gauge"
        yield f"{name} {value!r}"
