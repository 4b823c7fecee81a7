"""One self-contained HTML page: text, tables, pictures and a replay of the denoising.

Nothing is loaded from anywhere: styles, script and pictures are inside, and a content security policy forbids the
rest. Model output is untrusted: text is escaped (jinja2, autoescape on), data for the script is JSON without `<`, `>` or `&`, and the
policy allows only the script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dcoder_cli.analysis.colours import ORDER_MAPS, order_colour, text_colour
from dcoder_cli.analysis.plots import data_uri, narrowed
from dcoder_cli.base.files import atomic_file
from dcoder_cli.decoding.trajectory import Trajectory

_LONG = 30  # characters of a cell beside which a narrow screen has no room for another column; ours


class Report:
    """A page built section by section; every `add_` returns the report, so calls chain."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[dict[str, Any]] = []

    def add_heading(self, text: str) -> Report:
        """A section's heading."""
        return self._add("heading", text=text)

    def add_text(self, text: str) -> Report:
        """Paragraphs, separated by empty lines."""
        for part in text.split("\n\n"):
            if part.strip():
                self._add("text", text=part.strip())
        return self

    def add_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Report:
        """A table; numbers are set right, with 4 significant digits, and None shows as a dash.

        On a narrow screen a table of numbers scrolls sideways beside its first column; one with long texts shows each
        row as a list of its cells.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        named = [{"name": name, "number": _numeric(rows, index)} for index, name in enumerate(columns)]
        longest = max((len(cell) for row in cells for cell in row[1:]), default=0)
        return self._add(
            "table", columns=named, rows=cells, caption=caption, stacked=longest > _LONG and len(columns) > 2
        )

    def add_settings(self, settings: Mapping[str, Any], caption: str = "") -> Report:
        """Names and values as a two-column table; nested mappings are written with dots."""
        return self.add_table(
            ["setting", "value"], [[name, _setting(value)] for name, value in _flat(settings)], caption
        )

    def add_figure(self, figure: Any, caption: str, alt: str = "", kind: str = "svg") -> Report:
        """A matplotlib figure, with its panels below each other on a narrow screen; or the path of a PNG or SVG file.

        `alt` tells what can be seen, for those who cannot; default: the caption.
        """
        drawn = not isinstance(figure, Path)
        return self._add(
            "figure",
            source=data_uri(figure, kind),
            narrow=data_uri(narrowed(figure), kind) if drawn else None,
            # Curves are turned light on dark; a map's colours mean something and stay.
            lines=drawn and not any(axis.images for axis in figure.axes),
            caption=caption,
            alt=alt or caption,
        )

    def add_ordered_text(self, pieces: Sequence[str], reveal_step: Sequence[int], caption: str) -> Report:
        """A text with each token on the colour of its step, dark to light (DiffuCoder fig. 1a), as text that wraps."""
        steps = sorted(set(reveal_step))
        share = {step: index / max(len(steps) - 1, 1) for index, step in enumerate(steps)}
        grounds = [order_colour(share[step]) for step in reveal_step]
        cells = [
            {"text": text, "step": step, "ground": ground, "ink": text_colour(ground)}
            for text, step, ground in zip(pieces, reveal_step, grounds, strict=True)
        ]
        scale = f"linear-gradient(to right, {', '.join(ORDER_MAPS['ordered'])})"
        return self._add("ordered", cells=cells, caption=caption, scale=scale)

    def add_replay(
        self,
        trajectories: Sequence[Trajectory],
        pieces: Sequence[Sequence[str]],
        labels: Sequence[str] | None = None,
        caption: str = "",
    ) -> Report:
        """A player: tokens appear at their step, coloured by order; slider, play button, choice of sample.

        Args:
            trajectories: the samples to choose from.
            pieces: for each, the text of every token (`sources.pieces`).
            labels: names in the choice; default: the ids.
            caption: a line above the player.
        """
        names = labels if labels is not None else [trajectory.id for trajectory in trajectories]
        samples = [
            _sample(trajectory, texts, name)
            for trajectory, texts, name in zip(trajectories, pieces, names, strict=True)
        ]
        return self._add("replay", samples=_json(samples) if samples else None, caption=caption)

    def _add(self, kind: str, **values: Any) -> Report:
        self._sections.append({"kind": kind, **values})
        return self

    def html(self) -> str:
        """The page."""
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup

        script, style = _asset("replay.js"), _asset("report.css")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("report.html.j2"))
        # Our own files, and JSON without `<`: the only texts that are not escaped.
        sections = [
            {**one, "samples": one["samples"] and Markup(one["samples"])} if one["kind"] == "replay" else one
            for one in self._sections
        ]
        return template.render(
            title=self.title, subtitle=self.subtitle, sections=sections, style=Markup(style), script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            palettes=Markup(_json(ORDER_MAPS)),
        )  # fmt: skip

    def write(self, path: str | Path) -> Path:
        """Write the page, atomically."""
        with atomic_file(path) as temporary:
            temporary.write_bytes(self.html().encode("utf-8", "replace"))
        return Path(path)


def _sample(trajectory: Trajectory, pieces: Sequence[str], label: str) -> dict[str, Any]:
    steps = sorted(set(trajectory.reveal_step))
    rank = {step: index for index, step in enumerate(steps)}
    return {
        "label": label,
        "prompt": trajectory.prompt,
        "pieces": list(pieces),
        "order": steps,
        "rank": [rank[step] for step in trajectory.reveal_step],
        "confidence": [_rounded(value) for value in trajectory.confidence],
        "entropy": [_rounded(value) for value in trajectory.entropy],
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _asset(name: str) -> str:
    return resources.files("dcoder_cli.analysis").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, so no `</script>` and no `<!--`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(rows: Sequence[Sequence[Any]], index: int) -> bool:
    numbers = all(isinstance(row[index], (int, float, type(None))) and not isinstance(row[index], bool) for row in rows)
    return bool(rows) and numbers


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        pairs.extend(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)])
    return pairs


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return _cell(value)
