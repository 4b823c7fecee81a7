"""One self-contained HTML page: text, tables, pictures and a replay of the denoising.

Nothing is loaded from anywhere: styles, script and pictures are inside, and a content security policy forbids the
rest. Model output is untrusted: text is escaped, data for the script is JSON without `<`, `>` or `&`, and the
policy allows only the script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dcoder_cli.analysis.colours import ORDER_MAPS
from dcoder_cli.analysis.plots import data_uri
from dcoder_cli.base.files import atomic_file
from dcoder_cli.decoding.trajectory import Trajectory

_CONTROLS = """
<div class="controls">
<label>Sample <select data-part="sample"></select></label>
<button type="button" data-part="play">Play</button>
<label class="slider">Step <input type="range" min="0" max="1" value="1" step="1" data-part="step"></label>
<label>Speed <select data-part="speed"><option value="5">5 steps/s</option><option value="20" selected>20 steps/s</option>
<option value="60">60 steps/s</option></select></label>
<label>Colours <select data-part="colours"><option value="rainbow">red to purple</option>
<option value="ordered">dark to light</option></select></label>
<label>first <span class="scale" data-part="scale"></span> last</label>
</div>
<output data-part="status"></output>
<details><summary>Prompt</summary><pre class="prompt" data-part="prompt"></pre></details>
<pre data-part="text" tabindex="0" aria-label="Text; masked tokens are grey and keep their final width"></pre>
<noscript><p>The replay needs JavaScript.</p></noscript>
"""


class Report:
    """A page built section by section; every `add_` returns the report, so calls chain."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []

    def add_heading(self, text: str) -> Report:
        """A section's heading."""
        self._sections.append(f"<h2>{_text(text)}</h2>")
        return self

    def add_text(self, text: str) -> Report:
        """Paragraphs, separated by empty lines."""
        self._sections.extend(f"<p>{_text(part.strip())}</p>" for part in text.split("\n\n") if part.strip())
        return self

    def add_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Report:
        """A table; numbers are set right, with 4 significant digits, and None shows as a dash."""
        head = "".join(
            f'<th scope="col"{_numeric(rows, index)}>{_text(name)}</th>' for index, name in enumerate(columns)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td{_numeric(rows, index)}>{_text(_cell(value))}</td>" for index, value in enumerate(row))
            + "</tr>"
            for row in rows
        )
        title = f"<caption>{_text(caption)}</caption>" if caption else ""
        self._sections.append(
            f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        return self

    def add_settings(self, settings: Mapping[str, Any], caption: str = "") -> Report:
        """Names and values as a two-column table; nested mappings are written with dots."""
        return self.add_table(
            ["setting", "value"], [[name, _setting(value)] for name, value in _flat(settings)], caption
        )

    def add_figure(self, figure: Any, caption: str, alt: str = "", kind: str = "svg") -> Report:
        """A matplotlib figure, or the path of a PNG or SVG file. `alt` tells what can be seen, for those who cannot; default: the caption."""
        self._sections.append(
            f'<figure><img alt="{_text(alt or caption)}" src="{data_uri(figure, kind)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
        return self

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
        title = f'<p class="soft">{_text(caption)}</p>' if caption else ""
        data = f'<script type="application/json">{_json(samples)}</script>'
        self._sections.append(f'{title}<div class="replay">{_CONTROLS}{data}</div>' if samples else title)
        return self

    def html(self) -> str:
        """The page."""
        script, style = _asset("replay.js"), _asset("report.css")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        subtitle = f'<p class="soft">{_text(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_text(self.title)}</title><style>{style}</style></head>\n<body><main>"
            f"<h1>{_text(self.title)}</h1>{subtitle}\n" + "\n".join(self._sections) + "\n</main>"
            f'<script type="application/json" id="palettes">{_json(ORDER_MAPS)}</script>'
            f"<script>{script}</script></body></html>\n"
        )

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


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(rows: Sequence[Sequence[Any]], index: int) -> str:
    numbers = all(isinstance(row[index], (int, float, type(None))) and not isinstance(row[index], bool) for row in rows)
    return ' class="number"' if rows and numbers else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        pairs.extend(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)])
    return pairs


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return _cell(value)
