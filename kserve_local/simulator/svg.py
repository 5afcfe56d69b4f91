"""Shapes as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kserve_local.simulator.chart import HEIGHT, WIDTH, Dot, Line, Shape, Text


def svg(shapes: Sequence[Shape]) -> str:
    """Return a document of its own, with a white ground."""
    body = "\n".join(map(_element, shapes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _element(shape: Shape) -> str:
    match shape:
        case Line():
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            if shape.closed:
                return f'<polygon points="{points}" fill="{shape.color}"/>'
            return (
                f'<polyline points="{points}" fill="none" stroke="{shape.color}" '
                f'stroke-width="{shape.width:g}"/>'
            )
        case Dot():
            x, y = shape.at
            title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
            return (
                f'<circle cx="{x:g}" cy="{y:g}" r="{shape.radius:g}" '
                f'fill="{shape.color}">{title}</circle>'
            )
        case Text():
            x, y = shape.at
            turn = f' transform="rotate(90 {x:g} {y:g})"' if shape.turned else ""
            anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
            return (
                f'<text x="{x:g}" y="{y:g}" font-size="{shape.size}" fill="{shape.color}"'
                f"{anchor}{turn}>{escape(shape.text)}</text>"
            )
