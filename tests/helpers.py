"""Small checkpoints and shards made on the spot."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import documented
import numpy as np
import pytest
from warm import Warm

from dcoder_cli.data.arrays import write_arrays

PYTHON_TEXT = [
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n    print(i * i)\n",
    "class A:\n    x = 1\n",
] * 20


_WARM = Warm()


def dcoder(*arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a real process: forked from one that has imported all (warm.py) where it can be."""
    line = [*map(str, arguments)]
    warm = _WARM.run(line, 300, **options) if options.keys() <= {"cwd", "input"} else None
    done = warm or subprocess.run(
        [sys.executable, "-m", "dcoder_cli", *line], capture_output=True, text=True, timeout=300, **options
    )
    assert not check or done.returncode == 0, done.stderr
    if done.returncode == 0 and "--json" in arguments:
        documented.check_output([*map(str, arguments)], done.stdout)
    return done


def thinned(cases: Iterable[Sequence[Any]], every: int) -> list[Any]:
    """Cases of a parametrised test: one of so many by default, all with `-m 'slow or not slow'`."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if number % every else []) for number, case in enumerate(cases)
    ]


def said(*arguments: str | Path) -> str:
    """What a call that succeeds prints, in this process: a new one takes seconds to import transformers."""
    from dcoder_cli.main import main

    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dcoder", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            assert not left.code, (left.code, stdout.getvalue())
    if "--json" in arguments:
        documented.check_output([*map(str, arguments)], stdout.getvalue())
    return stdout.getvalue()


def refused(*arguments: str | Path) -> str:
    """Run a command, in this process, that must be refused: exit 2, nothing on stdout, one line on stderr, returned."""
    from dcoder_cli.main import main

    stdout, stderr = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["dcoder", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before
    assert left.value.code == 2, (left.value.code, stdout.getvalue(), stderr.getvalue())
    lines = stderr.getvalue().strip().splitlines()
    assert len(lines) == 1 and not stdout.getvalue(), (stdout.getvalue(), stderr.getvalue())
    return lines[0]


def make_tokenizer(size: int = 300) -> Any:
    """A small byte-level BPE with a chat template."""
    from dcoder_cli.model.tokenizer import train_tokenizer

    return train_tokenizer(PYTHON_TEXT, size)


def make_model(
    folder: Path, ar: bool = False, seed: int = 0, context: int = 128, tokenizer: Any | None = None, **shape: Any
) -> Path:
    """A tiny random checkpoint with a tokenizer."""
    from dcoder_cli.model.convert import to_diffusion
    from dcoder_cli.model.fresh import ar_config_with_tokenizer, random_model
    from dcoder_cli.model.sizes import config_of

    tokenizer = tokenizer or make_tokenizer()
    config = {
        **config_of("tiny", len(tokenizer)),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": context,
        **shape,
    }
    model = random_model(ar_config_with_tokenizer(config, tokenizer), tokenizer, seed, "random")
    (model if ar else to_diffusion(model)).save(folder)
    return folder


def make_shards(
    folder: Path,
    tokenizer: Any,
    kind: str = "pretrain",
    rows: int = 40,
    length: int = 32,
    seed: int = 0,
    heldout: int = 8,
) -> Path:
    """A shard folder with patterned rows that a tiny model can learn, and so many held-out ones (0: no such split)."""
    from dcoder_cli.model.tokenizer import tokenizer_hash

    source = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    files = []
    vocabulary = len(tokenizer)
    for split, count in (("train", rows), ("heldout", heldout)):
        if not count:
            continue
        start = source.integers(5, 200, size=(count, 1))
        tokens = ((start + np.arange(length)[None, :] * 3) % 200 + 5).astype(np.uint16)
        arrays: dict[str, np.ndarray] = {"tokens": tokens}
        if kind == "pretrain":
            arrays["document_ids"] = np.repeat(np.arange(2, dtype=np.uint16), length // 2)[None, :].repeat(
                count, axis=0
            )
        else:
            eligible = np.zeros((count, length), dtype=np.uint8)
            eligible[:, length // 2 :] = 1
            arrays["eligible"] = eligible
        name = f"{split}-00000.safetensors"
        digest = write_arrays(folder / name, arrays, {})
        files.append({"split": split, "file": name, "rows": count, "sha256": digest})
    manifest = {
        "format_version": 1,
        "kind": kind,
        "sequence_length": length,
        "tokenizer": {"hash": tokenizer_hash(tokenizer), "vocab_size": vocabulary, "name": "test"},
        "special_tokens": {},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_prompts(folder: Path, train: list[dict[str, Any]], heldout: Sequence[dict[str, Any]] = ()) -> Path:
    """A folder of prompts for stage 4, as `dcoder tokenize rl` writes it."""
    folder.mkdir(parents=True)
    files = []
    for split, name, rows in (("train", "prompts.jsonl", train), ("heldout", "heldout-prompts.jsonl", heldout)):
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name).write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            files.append({"file": name, "split": split, "rows": len(rows), "sha256": digest})
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "kind": "rl", "files": files}))
    return folder
