"""The entropy sink's fit, pictures, the report's safety, and what analysis reads."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dcoder_cli.analysis import entropy_sink, plots, sources
from dcoder_cli.analysis.arness import arness
from dcoder_cli.analysis.colours import ORDER_MAPS, luminance, order_colour, text_colour
from dcoder_cli.analysis.entropy_sink import EntropyMap, first_step_profile, fit_decay
from dcoder_cli.analysis.report import Report
from dcoder_cli.analysis.text_picture import layout, ordered_text
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.trajectory import Trajectory

HOSTILE = "</script><script>alert(1)</script><!-- <img src=http://x.example/a.png onerror=alert(2)> & \u2028 \ud800"


def sample(reveal_step: list[int], **fields: object) -> Trajectory:
    length = len(reveal_step)
    given = {"id": "s", "prompt": "", "tokens": [1] * length, "text": "", "prompt_length": 0} | fields
    nan = [math.nan] * length
    return Trajectory(reveal_step=reveal_step, confidence=nan, entropy=nan, **given)  # type: ignore[arg-type]


# --- entropy sink ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "rise", "decay"), [(0.1, 0.8, 3.0), (0.3, 0.5, 20.0), (0.02, 0.9, 0.8)])
def test_fit_recovers_the_curve_it_was_given(floor: float, rise: float, decay: float) -> None:
    curve = floor + rise * np.exp(-np.arange(256) / decay)
    fit = fit_decay(curve)
    assert fit["decay_length"] == pytest.approx(decay, rel=1e-3)
    assert fit["floor"] == pytest.approx(floor, abs=1e-3)
    assert fit["rise"] == pytest.approx(rise, rel=1e-3)
    assert fit["r2"] == pytest.approx(1, abs=1e-6)
    noisy = fit_decay(curve + np.random.default_rng(0).normal(0, 0.01, 256))
    assert noisy["decay_length"] == pytest.approx(decay, rel=0.1)


def test_fit_says_nothing_where_nothing_decays() -> None:
    for curve in (np.full(50, 0.4), np.linspace(0.1, 0.9, 50), np.linspace(0.9, 0.1, 50), np.array([0.5, 0.4])):
        assert fit_decay(curve)["decay_length"] is None


def test_first_step_profile_reads_the_models_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits with a known best probability: 0.1 + 0.8 exp(-(d-1)/5) at distance d, the mask's own logit huge."""
    import torch

    vocabulary, mask = 11, 10

    def logits(ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[0] == 1 and (ids[0, -32:] == mask).all()
        place = torch.arange(ids.shape[1]) - (ids.shape[1] - 32)
        best = (0.1 + 0.8 * torch.exp(-place.clamp(min=0) / 5.0)).double()
        rest = (1 - best) / (vocabulary - 2)
        out = rest[:, None].repeat(1, vocabulary).log()
        out[:, 3] = best.log()
        out[:, mask] = 50.0
        return out[None]

    model = SimpleNamespace(
        hidden=logits, head=lambda hidden: hidden.clone(), ids=SimpleNamespace(mask=mask), device="cpu", name="known"
    )
    monkeypatch.setattr(entropy_sink, "_CHUNK", 5)
    profile = first_step_profile(model, [[1, 2], [1, 2, 3]], length=32)
    assert profile["prompts"] == 2 and profile["distance"][-1] == 32
    assert profile["confidence"][0] == pytest.approx(0.9, abs=1e-5)
    assert profile["confidence"][10] == pytest.approx(0.1 + 0.8 * math.exp(-2), abs=1e-5)
    rest = 0.1 / 9
    assert profile["entropy"][0] == pytest.approx(-(0.9 * math.log(0.9) + 9 * rest * math.log(rest)), abs=1e-5)
    # Far away the best of 10 tokens has 1/10, so the curve is 0.1 + 0.8 exp(..) throughout.
    assert profile["fit"]["decay_length"] == pytest.approx(5, rel=0.02)
    with pytest.raises(UserError, match="0 prompts"):
        first_step_profile(model, [], length=32)
    with pytest.raises(UserError, match="no mask token"):
        first_step_profile(SimpleNamespace(ids=SimpleNamespace(mask=None), name="ar"), [[1]])


def test_entropy_map_keeps_the_mean_and_the_first_row() -> None:
    seen = EntropyMap()
    seen.observe(0, 0, [0, 1, 2], [0.5] * 3, [1.0, 2.0, 3.0])
    seen.observe(0, 1, [0, 1], [0.5] * 2, [3.0, 4.0])
    seen.observe(2, 0, [2], [0.5], [0.5])
    mean, first, nan = seen.mean(), seen.first_row(), math.nan
    np.testing.assert_array_equal(mean, [[2, 3, 3], [nan] * 3, [nan, nan, 0.5]])
    np.testing.assert_array_equal(first, [[1, 2, 3], [nan] * 3, [nan, nan, 0.5]])


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_whole_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    series = {
        f"_name ${index}$ <b>": arness([sample(generator.permutation(20).tolist()) for _ in range(3)])
        for index in range(9)
    }
    series["short"] = arness([sample([0, 1])])  # most of local@k undefined
    first = next(iter(series.values()))
    points = [{"temperature": t, "arness": first, "pass@1": 0.5, "pass@10": (0.8, 0.7, 0.9)} for t in (0.2, 1.0)]
    profile = {
        "distance": [1, 2, 3, 4, 5],
        "confidence": [0.9, 0.4, 0.2, 0.15, 0.1],
        "low": [None, 0.3, 0.1, None, 0.05],  # where prompts are all equal there is no interval
        "high": [None, 0.5, 0.3, None, 0.15],
    }
    profile["fit"] = fit_decay(profile["confidence"])
    grid = np.where(np.tri(8, 8, dtype=bool), np.nan, generator.random((8, 8)))
    pieces = ["def", " f", "(x):\n", "\treturn", " 日本", "é", "", "$x_1$", "\x00", " x" * 70]
    figures = {
        "curves": plots.arness_curves(series),
        "temperature": plots.by_temperature({"model": points, "other": points[:1]}),
        "first": plots.first_step({"model": profile}),
        "entropy": plots.entropy_heatmaps({"first": grid, "second": grid}),
        "order": plots.decoding_order({"random": [generator.permutation(20).tolist()], "one": [[0]]}),
        "text": ordered_text(pieces, list(range(10)), "rainbow", title="a $ title"),
        "grey": ordered_text(pieces, [3] * 10, "ordered"),
        "empty": ordered_text([], []),
    }
    for name, figure in figures.items():
        png, svg = plots.save(figure, tmp_path, name)
        data = png.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 300 and height > 50 and len(data) > 1000, name
        assert ElementTree.fromstring(svg.read_text("utf-8")).tag.endswith("svg")
    once, twice = (plots.data_uri(plots.arness_curves(series)) for _ in range(2))
    assert once == twice, "the same numbers give the same picture, byte for byte"


def test_the_order_map_for_print_grows_lighter_and_text_stays_readable() -> None:
    lights = [luminance(order_colour(step / 100, "ordered")) for step in range(101)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(lights))
    assert lights[-1] - lights[0] > 0.6
    for name in ORDER_MAPS:
        for step in range(101):
            background = order_colour(step / 100, name)
            light, ink = luminance(background), luminance(text_colour(background))
            assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 4.5  # WCAG AA


def test_text_layout_keeps_every_character_once() -> None:
    cells = layout(["ab", "cd\n", "\n", "efghij", "日"], columns=4)
    assert cells == [
        (0, 0, "ab", 0), (0, 2, "cd", 1), (1, 0, "⏎", 1), (2, 0, "⏎", 2), (3, 0, "efgh", 3), (4, 0, "ij", 3), (4, 2, "□□", 4),
    ]  # fmt: skip


# --- report ---------------------------------------------------------------------------------------------------------


def svg_size(address: str | None) -> tuple[float, float]:
    svg = base64.b64decode((address or "").partition(",")[2]).decode()
    width, height = (re.search(rf'<svg[^>]* {name}="([\d.]+)pt"', svg) for name in ("width", "height"))
    assert width and height
    return float(width[1]), float(height[1])


def numbers_of(length: int) -> dict[str, Any]:
    return arness([sample(list(range(length))), sample(list(range(length))[::-1])])


class Page(HTMLParser):
    """Elements and scripts of a page, as a browser's parser would split them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data


def hostile_page() -> str:
    trajectory = sample([1, 0, 2], id=HOSTILE, prompt=HOSTILE)
    report = Report(HOSTILE, HOSTILE).add_heading(HOSTILE).add_text(HOSTILE)
    report.add_table([HOSTILE, "n"], [[HOSTILE, 1], [HOSTILE, None]], HOSTILE)
    report.add_settings({HOSTILE: HOSTILE, "nested": {"a": [1, 2]}, "unset": None})
    report.add_figure(plots.decoding_order({HOSTILE: [[0, 1]]}), HOSTILE)
    return report.add_replay([trajectory], [[HOSTILE, "b", "c"]], caption=HOSTILE).html()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = Page(hostile_page())
    assert [tag for tag, _ in page.tags].count("script") == 3  # the replay's data, the palettes, our script
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert json.loads(page.scripts[0])[0]["pieces"][0] == HOSTILE
    assert page.scripts[2].startswith('"use strict"')
    Report(HOSTILE).write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8")


def test_nothing_is_loaded_from_outside() -> None:
    page = Page(hostile_page())
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe-inline'; script" in policy
    assert "url(" not in Report("x").html() and "@import" not in Report("x").html()


def test_report_tables_show_numbers_and_gaps() -> None:
    text = Report("t").add_table(["name", "value"], [["a", 0.123456], ["b", None], ["c", float("nan")]]).html()
    assert '<td data-label="value" class="number">0.1235</td>' in text
    assert text.count('<td data-label="value" class="number">–</td>') == 2


def test_a_table_of_long_texts_lists_its_cells_on_a_narrow_screen() -> None:
    prose = Report("t").add_table(["step", "what", "s"], [["one", "a sentence that no narrow column holds", 1.0]])
    numbers = Report("t").add_table(["", "a", "b"], [["a long name of a row, which may break", 0.25, 1]], "long " * 30)
    assert '<table class="stacked">' in prose.html() and '<table class="stacked">' not in numbers.html()
    assert "<caption" not in numbers.html() and "nowrap; }" not in numbers.html().split(".number")[0]


def test_figures_have_a_narrow_variant_with_letters_as_large() -> None:
    figure = plots.arness_curves({"a rather long label": numbers_of(8), "b": numbers_of(5)})
    page = Page(Report("t").add_figure(figure, "x").html())
    source = next(attributes for tag, attributes in page.tags if tag == "source")
    image = next(attributes for tag, attributes in page.tags if tag == "img")
    assert source["media"] == "(max-width: 48rem)" and source["srcset"] != image["src"]
    wide, narrow = (svg_size(attributes[name]) for attributes, name in ((image, "src"), (source, "srcset")))
    assert wide[0] > 1.5 * wide[1] and narrow[1] > narrow[0], "panels stand below each other"
    assert narrow[0] <= 390 * 0.75 - 25, "points: a tick label is shown at its own size at 390 px"


def test_curves_turn_light_on_dark_and_maps_keep_their_colours() -> None:
    curves = Report("t").add_figure(plots.decoding_order({"a": [[0, 1]]}), "x").html()
    maps = Report("t").add_figure(plots.entropy_heatmaps({"a": np.ones((3, 4)), "b": np.ones((3, 4))}), "x").html()
    assert '<img class="lines"' in curves and '<img class="lines"' not in maps and "<source" in maps


def test_the_replay_opens_before_the_first_step_with_the_prompt_in_sight() -> None:
    text = Report("t").add_replay([sample([1, 0])], [["a", "b"]]).html()
    assert (
        "<details open><summary>Prompt" in text and 'slider.value = "0";\n    show();\n  }\n\n  function tick' in text
    )
    assert text.index('value="ordered" selected') < text.index('value="rainbow"')


def test_ordered_text_is_text_on_the_colour_of_its_step() -> None:
    text = Report("t").add_ordered_text(["<b>", "x"], [1, 0], "c").html()
    assert f'style="background:{order_colour(1.0)};color:#000000" title="step 1">&lt;b&gt;</span>' in text
    assert f'style="background:{order_colour(0.0)};color:#ffffff" title="step 0">x</span>' in text
    lightness = [luminance(order_colour(index / 10)) for index in range(11)]
    assert lightness == sorted(lightness), "by default the order is that of lightness"


def test_the_replay_of_twenty_samples_of_512_tokens_stays_small() -> None:
    trajectories = [sample(list(range(512)), id=str(index)) for index in range(20)]
    text = Report("t").add_replay(trajectories, [["token"] * 512] * 20).html()
    assert len(text) < 700_000


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_short_form_is_read_as_reveal_steps(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"id": "x", "order": [2, 0, 1]}\n\n{"order": [[0, 2], [], [1]], "tokens": [7, 8, 9]}\n')
    first, second = sources.read_trajectories(path)
    assert (first.id, first.reveal_step) == ("x", [1, 2, 0])
    assert (second.reveal_step, second.tokens) == ([0, 2, 0], [7, 8, 9])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"order": [0, 2, 1, 4]}', "position 3 is never committed"),
        ('{"order": [0, 1, 1, 2]}', "position 1 is committed at steps 1 and 2"),
        ('{"order": [0, -1]}', "which is no position"),
        ('{"order": [0, "1"]}', "which is no position"),
        ('{"order": []}', "no list 'order'"),
        ('{"order": [[]]}', "never committed"),
        ('{"order": [0, 1], "tokens": [5]}', "tokens has 1 entries"),
    ],
)
def test_a_broken_short_form_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        sources.read_trajectories(path)


def test_pieces_join_split_characters_and_fold_pads() -> None:
    from dcoder_cli.model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["def f(x):\n    return x"], 300)
    text = "def é日x"
    ids = tokenizer(text)["input_ids"] + tokenizer("é")["input_ids"][:1] + tokenizer("x")["input_ids"] + [2, 0, 0, 0]
    pieces = sources.pieces(sample([0] * len(ids), tokens=ids), tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text + "\ufffdx<|im_end|><|endoftext|>··"
    assert sources.pieces(sample([0, 1], tokens=[5, 6]), None) == ["5 ", "6 "]
    assert sources.pieces(sample([0, 1], tokens=[0, 0]), None) == ["0 ", "1 "]
