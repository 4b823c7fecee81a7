"""The installed wheel, away from the source tree: every command's help, presets, a model made and sampled. Run by .ci/run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def dcoder(*arguments: str) -> str:
    """Run the installed command."""
    return subprocess.run(["dcoder", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Fails with a traceback where anything is missing from the wheel."""
    import dcoder_cli
    from dcoder_cli.main import COMMANDS

    home = Path(dcoder_cli.__file__).parent
    assert "site-packages" in str(home), home
    for name in ("commands", "presets"):
        assert importlib.util.find_spec(name) is None, f"{name} took a top-level name"
        assert (home / name / "__init__.py").is_file()
    assert (home / "py.typed").is_file()
    for name in COMMANDS:
        assert "--help" in dcoder(name, "--help"), name
    assert "paper" in json.loads(dcoder("presets", "list", "--json"))["presets"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.py")
        text.write_text("def add(a, b):\n    return a + b\n" * 100)
        dcoder(
            "convert",
            "--init",
            "tiny",
            "--train-tokenizer",
            str(text),
            "--vocab-size",
            "300",
            "--out",
            f"{folder}/model",
        )
        made = json.loads(
            dcoder("generate", "--model", f"{folder}/model", "--max-new-tokens", "8", "--json", "def add")
        )
        assert len(made["tokens"]) == 8 and sorted(made["reveal_step"]) == list(range(8))
        assert dcoder_cli.load(f"{folder}/model", device="cpu").is_diffusion
    print(f"wheel of dcoder {dcoder_cli.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
