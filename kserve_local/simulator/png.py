"""Shapes as a PNG, by Pillow: the only importer of it, and only when a PNG is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence

from kserve_local.errors import Missing
from kserve_local.simulator.chart import HEIGHT, WIDTH, Dot, Line, Shape, Text

_SCALE = 2
"""Pixels a unit, for sharp letters."""
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(shapes: Sequence[Shape]) -> bytes:
    """Return the picture.

    Raises:
        Missing: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise Missing(
            "a PNG needs Pillow, which is not installed",
            hint="pip install 'kserve-local[plot]'   or --plot FILE.svg, which needs nothing",
        ) from error
    image = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), "#ffffff")
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        match shape:
            case Line():
                points = [(x * _SCALE, y * _SCALE) for x, y in shape.points]
                if shape.closed:
                    draw.polygon(points, fill=shape.color)
                else:
                    width = round(shape.width * _SCALE)
                    draw.line(points, fill=shape.color, width=width, joint="curve")
            case Dot():
                (x, y), r = shape.at, shape.radius
                box = [(x - r) * _SCALE, (y - r) * _SCALE, (x + r) * _SCALE, (y + r) * _SCALE]
                draw.ellipse(box, fill=shape.color)
            case Text():
                x, y = (round(v * _SCALE) for v in shape.at)
                font = ImageFont.load_default(shape.size * _SCALE)
                if not shape.turned:
                    anchor = _ANCHORS[shape.anchor]
                    draw.text((x, y), shape.text, shape.color, font, anchor=anchor)
                    continue
                length, height = round(font.getlength(shape.text)) + 4, shape.size * _SCALE * 2
                strip = Image.new("L", (length, height), 0)
                base = height * 3 // 4
                ImageDraw.Draw(strip).text((0, base), shape.text, 255, font, anchor="ls")
                turned = strip.rotate(-90, expand=True)
                image.paste(shape.color, (x - (height - base), y), turned)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
