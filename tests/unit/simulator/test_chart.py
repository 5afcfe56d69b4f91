"""The picture: everything in it, in both forms."""

from __future__ import annotations

import builtins
import io
from typing import Any
from xml.etree import ElementTree

import pytest

from kserve_local.errors import Missing
from kserve_local.simulator.chart import HEIGHT, WIDTH, clock, picture
from kserve_local.simulator.png import png
from kserve_local.simulator.result import Result
from kserve_local.simulator.svg import svg
from tests.unit.simulator.world import constant, run, terms

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def result() -> Result:
    calls = constant(5, 5, 30)
    return run(terms(scaleTarget=1, minReplicas=0), calls, 200, from_zero=True)


def test_every_step_is_a_dot_that_says_why(result: Result) -> None:
    tree = ElementTree.fromstring(svg(picture(result, "a <title> & more")))
    titles = [title.text or "" for title in tree.iter(f"{SVG}title")]
    assert len(titles) == len(result.steps) > 4
    for step, title in zip(result.steps, titles, strict=True):
        assert f"{step.before} -> {step.replicas}  {step.reason}: {step.message}" in title
    texts = [text.text or "" for text in tree.iter(f"{SVG}text")]
    assert texts[0] == "a <title> & more"
    assert any("ScaledToZero" in text for text in texts)


def test_all_of_it_lies_in_the_picture(result: Result) -> None:
    tree = ElementTree.fromstring(svg(picture(result, "iris")))
    for line in (*tree.iter(f"{SVG}polyline"), *tree.iter(f"{SVG}polygon")):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


@pytest.mark.parametrize("duration", [0.5, 1, 59, 3600, 86400, 90 * 86400])
def test_any_length_of_time_has_a_few_marks(duration: float) -> None:
    found = run(terms(minReplicas=0), [], duration, from_zero=True)
    tree = ElementTree.fromstring(svg(picture(found, "nothing")))
    marks = [t for t in tree.iter(f"{SVG}text") if t.attrib.get("text-anchor") == "middle"]
    assert 2 <= len(marks) <= 2 * 13


def test_a_png_has_the_size_of_the_picture_twice(result: Result) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(png(picture(result, "iris")))) as image:
        assert image.size == (2 * WIDTH, 2 * HEIGHT)
        assert len(image.getcolors(1 << 20) or ()) > 10


def test_without_pillow_a_png_says_what_to_do(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Missing, match="Pillow") as caught:
        png(picture(result, "iris"))
    assert "kserve-local[plot]" in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (3723, "1:02:03"), (-7, "-0:00:07"), (2.25, "0:00:02.2")]
)
def test_a_time_reads_as_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text
