"""All tests and benches that want a GPU, in one go on one card, without network: `python tests/gpu/run.py --out numbers`.

    python tests/gpu/run.py --out numbers                              # the tests marked gpu and the benches, in under 9 minutes
    python tests/gpu/run.py --out numbers --shape tiny                 # the same at toy sizes first: about two minutes
    python tests/gpu/run.py --out numbers --device cpu --shape tiny    # their bodies on a CPU, in under a minute

Nothing need be installed but what dcoder imports on its way (torch, transformers, accelerate, peft, tokenizers, typer, pytest,
...; no `datasets`): a checkout will do. Each part is a process of its own; those that compile for long run beside those whose
time nobody measures. A part that comes to the end of the time begins nothing new; one that still runs is stopped and said to
be. OUT/numbers.json holds every test's outcome,
every number and the machine; OUT/log.txt what the parts printed. The exit code is 1 where a test or bench failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
ROOT = TESTS.parent
MINUTES = 8.75
LATE = "the time of this run is up"  # why a test or bench was not begun
GRACE = 20  # seconds before the end at which what still runs is stopped
PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "triton", "flash-attn", "bitsandbytes", "torchao",
    "liger-kernel", "datasets", "numpy", "pytest",
)  # fmt: skip


@dataclass
class Part:
    """What one process does.

    Attributes:
        files: of tests; none = the benches.
        outcome: done, failed, cut short (it began nothing more), stopped, or left out.
        lines: what it wrote down, see recorder.py and benches.py.
    """

    name: str
    files: list[Path] = field(default_factory=list)
    outcome: str = "left out"
    seconds: float = 0.0
    lines: list[dict[str, Any]] = field(default_factory=list)


def parts(device: str) -> list[list[Part]]:
    """Groups in the order of their worth; those of a group run at once. Tests marked gpu elsewhere in tests/ run only on a card."""
    elsewhere = [file for file in sorted(TESTS.glob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]
    return [
        [
            Part("logits and sampling", [HERE / "test_gpu_logits.py", HERE / "test_gpu_sampling.py"]),
            Part("kernels", [*(elsewhere if device == "cuda" else []), HERE / "test_gpu_kernels.py"]),
        ],
        [Part("training", [HERE / "test_gpu_training.py", HERE / "test_gpu_lora.py"])],
        [Part("benches")],
    ]


def command(part: Part, device: str, shape: str, log: Path, deadline: float) -> list[str]:
    """How its process is started."""
    if not part.files:
        return [sys.executable, str(HERE / "benches.py"), device, shape, str(log), str(deadline)]
    chosen = "gpu" if device == "cuda" else "not gpu"
    options = ["-m", chosen, "-p", "recorder", "-q", "-rs", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    options += ["-o", "tmp_path_retention_policy=failed"]
    return [sys.executable, "-m", "pytest", *options, *map(str, part.files)]


def environment(device: str, shape: str, log: Path, deadline: float, package: Path) -> dict[str, str]:
    """Variables of all parts. On the CPU cards are hidden; on a card its CPU references may use every core."""
    path = [str(package), str(HERE)]
    more = {
        "DCODER_GPU_LOG": str(log), "DCODER_GPU_DEADLINE": str(deadline), "DCODER_GPU_SHAPE": shape,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # or the checkout's own dcoder_cli/, without commands, would come before the links
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    if device == "cpu":
        more["CUDA_VISIBLE_DEVICES"] = ""
    else:
        more["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    return {**os.environ, **more}


def link(folder: Path) -> Path:
    """This checkout's package as an installation would have it, by links: commands/ and presets/ install inside dcoder_cli."""
    package = folder / "dcoder_cli"
    package.mkdir(parents=True)
    for source in [*(ROOT / "dcoder_cli").iterdir(), ROOT / "commands", ROOT / "presets"]:
        (package / source.name).symlink_to(source)
    return folder


def run(group: list[Part], device: str, shape: str, out: Path, end: float, package: Path) -> None:
    """Start the processes of a group, follow them to their end or to that of the time, and read what they wrote down."""
    began, going = time.time(), []
    try:
        for part in group:
            log, words = (out / f".{part.name.replace(' ', '-')}.{kind}" for kind in ("jsonl", "txt"))
            with open(words, "w", encoding="utf-8") as text:
                process = subprocess.Popen(
                    command(part, device, shape, log, end - GRACE), cwd=ROOT, stdout=text, stderr=subprocess.STDOUT,
                    env=environment(device, shape, log, end - GRACE, package), process_group=0,
                )  # fmt: skip
            going.append((part, process, log, words))
        while any(process.poll() is None for _, process, _, _ in going) and time.time() < end:
            time.sleep(0.05)
            for part, process, _, _ in going:
                part.seconds = part.seconds if process.poll() is not None else round(time.time() - began, 1)
    finally:
        for part, process, log, words in going:
            code = process.poll()
            stop(process)
            part.outcome = "stopped" if code is None else "done" if code in (0, 5) else "failed"  # 5: no test to run
            part.lines = written(log)
            if part.outcome == "done" and any(LATE in str(line.get("why")) for line in part.lines):
                part.outcome = "cut short"
            with open(out / "log.txt", "a", encoding="utf-8") as text:
                text.write(f"\n== {part.name}\n{words.read_text(encoding='utf-8', errors='replace')}")
            log.unlink(missing_ok=True)
            words.unlink()


def written(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that a stopped process did not end is left out."""
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0] if log.is_file() else ""
    return [json.loads(text) for text in whole.split("\n") if text]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started; nothing where it has ended."""
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def machine(device: str, shape: str, minutes: float) -> dict[str, Any]:
    """What these numbers are of: date, card, versions, settings, commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "card": said(query) if device == "cuda" else None,
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "commit": said(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "settings": {"device": device, "shape": shape, "minutes": minutes},
    }


def said(words: list[str]) -> str | None:
    """What a command prints; None where it is not there or fails."""
    if shutil.which(words[0]) is None:
        return None
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def gathered(about: dict[str, Any], ran: list[Part], began: float) -> dict[str, Any]:
    """All that is known, as numbers.json has it."""
    lines = [{"part": part.name, **line} for part in ran for line in part.lines]
    return {
        **about,
        "seconds": round(time.time() - began, 1),
        "parts": [{"name": part.name, "outcome": part.outcome, "seconds": part.seconds} for part in ran],
        "tests": [line for line in lines if "test" in line],
        "numbers": [line for line in lines if "numbers" in line and "bench" not in line],
        "benches": [line for line in lines if "bench" in line],
    }


def told(part: Part) -> str:
    """A part in a line, and a line for each test or bench that failed, was stopped before, or was left out."""
    tests = [line for line in part.lines if "outcome" in line]
    counts = {kind: sum(line["outcome"] == kind for line in tests) for kind in ("passed", "failed", "error", "skipped")}
    counts["left out"] = sum(line["outcome"] == "left out" for line in tests)
    planned = next((line["collected"] for line in part.lines if "collected" in line), 0)
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    text = [f"{part.name:24} {part.outcome:9} {part.seconds:6.1f} s  {words}"]
    if part.outcome == "stopped":
        text.append(f"  stopped at the end of the time: {len(tests)} of {planned} tests had ended")
    for line in tests:
        if line["outcome"] in ("failed", "error", "left out"):
            name = line.get("test") or line.get("bench")
            why = str(line.get("why", "")).strip().splitlines() or [""]
            text.append(f"  {line['outcome']}: {name}: {why[0]}")
    reasons: dict[str, int] = {}
    for line in tests:
        if line["outcome"] == "skipped":
            reasons[line["why"]] = reasons.get(line["why"], 0) + 1
    return "\n".join([*text, *(f"  skipped {count}: {why}" for why, count in reasons.items())])


def short(found: dict[str, Any]) -> str:
    """Memory beside the formula, speeds and benches in a few lines, for who sees only the end of the output."""

    def flat(value: Any, name: str) -> list[str]:
        if isinstance(value, dict):
            inner = {"": value["median"]} if "median" in value else value
            return [part for key, one in inner.items() for part in flat(one, f"{name} {key}".strip())]
        return [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"]

    text = []
    for line in found["numbers"]:
        if "measured_mib" in line:
            measured, formula = line["measured_mib"], line["formula_mib"]
            text.append(f"{line['numbers']}: {measured:,.0f} MiB, formula {formula:,.0f} ({line['off']:+.1%})")
        elif "tokens_per_second" in line:
            speed = f"{line['tokens_per_second']:,.0f} tokens/s, {line['tflops']:.1f} TFLOP/s"
            text.append(f"{line['numbers']}: {speed}{', MFU {:.1%}'.format(line['mfu']) if 'mfu' in line else ''}")
    for line in found["benches"]:
        text.append(f"{line['bench']}: {'; '.join(flat(line.get('numbers', line['outcome']), ''))}")
    return "\n".join(text)


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--out", type=Path, required=True, help="folder for numbers.json and log.txt")
    asked.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    asked.add_argument("--shape", choices=("full", "tiny"), help="default: full on a card, tiny on a CPU")
    asked.add_argument("--minutes", type=float, default=MINUTES, help=f"when all must be over (default {MINUTES})")
    asked.add_argument(
        "--only", action="append", default=[], help="a part, by the beginning of its name; several times"
    )
    given = asked.parse_args()
    shape = given.shape or ("full" if given.device == "cuda" else "tiny")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started ends with it
    began, out = time.time(), given.out.resolve()
    end = began + 60 * given.minutes
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").write_text("", encoding="utf-8")
    about = machine(given.device, shape, given.minutes)
    print(json.dumps(about, indent=1), flush=True)
    every = parts(given.device)
    names = [part.name for group in every for part in group]
    only = tuple(given.only or names)
    groups = [found for group in every if (found := [part for part in group if part.name.startswith(only)])]
    chosen = [part for group in groups for part in group]
    if not chosen:
        asked.error(f"--only {given.only} names none of {names}")
    with tempfile.TemporaryDirectory() as folder:
        package = link(Path(folder))
        for group in groups:
            if time.time() < end - 2 * GRACE:
                run(group, given.device, shape, out, end, package)
            print("\n".join(map(told, group)), flush=True)
            (out / "numbers.json").write_text(json.dumps(gathered(about, chosen, began), indent=1), encoding="utf-8")
    print(short(gathered(about, chosen, began)))
    late = [part.name for part in chosen if part.outcome in ("cut short", "stopped", "left out")]
    if late:
        print(f"not all of it ran in {given.minutes:g} minutes: {', '.join(late)}; --only runs a part alone")
    print(f"{time.time() - began:.0f} s; {out / 'numbers.json'}")
    outcomes = {line.get("outcome") for part in chosen for line in part.lines}
    if "passed" not in outcomes:
        print("nothing has passed: is there a card?")
    bad = outcomes & {"failed", "error"} or "passed" not in outcomes
    return int(bool(bad) or any(part.outcome == "failed" for part in chosen))


if __name__ == "__main__":
    sys.exit(main())
