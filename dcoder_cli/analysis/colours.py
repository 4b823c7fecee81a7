"""Colours that survive colour-blindness and a black-and-white printer."""

from __future__ import annotations

# Okabe and Ito's palette without its yellow (too pale for lines on white), black first.
SERIES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

# Decoding order, first to last, as anchor colours that are interpolated in RGB.
# "rainbow" runs red to purple as DiffuCoder's figures 1a and 10 do; "ordered" grows lighter all the way
# (cividis: dark blue, grey, yellow), so that the order can be read in grey and by the colour-blind.
ORDER_MAPS: dict[str, tuple[str, ...]] = {
    "rainbow": ("#e6194b", "#f58231", "#ffe119", "#3cb44b", "#4363d8", "#911eb4"),
    "ordered": ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"),
}


def order_colour(share: float, name: str = "ordered") -> str:
    """`#rrggbb` of a token committed at `share` (0 first, 1 last) of the decoding."""
    anchors = ORDER_MAPS[name]
    place = min(max(share, 0.0), 1.0) * (len(anchors) - 1)
    index = min(int(place), len(anchors) - 2)
    weight = place - index
    low, high = _rgb(anchors[index]), _rgb(anchors[index + 1])
    mixed = [round(a + (b - a) * weight) for a, b in zip(low, high, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def terminal_colour(share: float) -> str:
    """`#rrggbb` of a token committed at `share`, as text on a terminal: blue over purple to orange.

    All have the luminance at which black and white grounds contrast alike (4.6 : 1, WCAG AA), because a program cannot
    tell which of the two it writes on; blue and orange stay apart for the colour-blind.
    """
    low, high = "#0072b2", "#d55e00"
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (a + (b - a) * share for a, b in zip(_rgb(low), _rgb(high), strict=True))
    blue += 120 * (1 - abs(2 * share - 1))  # the middle is purple instead of grey
    dark, light = 0.0, 2.0
    for _ in range(12):  # luminance grows with the scale: bisect for the one wanted
        scale = (dark + light) / 2
        colour = "#" + "".join(f"{min(255, round(value * scale)):02x}" for value in (red, green, blue))
        dark, light = (scale, light) if luminance(colour) < _MIDDLE else (dark, scale)
    return colour


_MIDDLE = 0.179  # (1.05 / (L + 0.05)) = ((L + 0.05) / 0.05)


def text_colour(background: str) -> str:
    """Black or white, whichever contrasts more with a background (WCAG relative luminance)."""
    light = luminance(background)
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def luminance(colour: str) -> float:
    """WCAG relative luminance of `#rrggbb`, 0 (black) to 1 (white)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in _rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
