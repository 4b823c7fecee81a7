"""`dcoder serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Range

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

KEY = "DCODER_API_KEY"


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Checkpoint: folder or hub id.", show_default=False)],
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; others than this machine need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name for clients [its folder or hub id].")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Answers decoded together.")] = 8,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Answers that may wait; more are refused with 429.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that a call may take, its wait included.")
    ] = 600.0,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="The longest answer that clients may ask for [context]."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    attention: options.Attention = "sdpa",
    cuda_graphs: options.CudaGraphs = False,
) -> None:
    """Serve a model over HTTP: OpenAI's API, and a page to watch it denoise.

    /v1/models, /v1/chat/completions and /v1/completions (with `suffix`: infilling) for any OpenAI client; the sampler's own
    parameters stand under `dcoder`. Also /health, /metrics, and a page at /. Clients give the key in DCODER_API_KEY, if that is
    set. Needs the extra: pip install 'dcoder[serve]'.

    Examples:

      dcoder serve runs/grpo/checkpoints/last

      DCODER_API_KEY=.. dcoder serve apple/DiffuCoder-7B-cpGRPO --host 0.0.0.0 --slots 32
    """
    try:
        from dcoder_cli.serving import server
        from dcoder_cli.serving.app import Serving
    except ImportError as error:
        raise UserError(
            f"serve needs the package {error.name}; install it with `pip install 'dcoder[serve]'`"
        ) from None
    key = os.environ.get(KEY) or None
    if key is None and not server.is_loopback(host):
        raise UserError(
            f"--host {host} is open to other machines, and no key is set; set {KEY} to one that clients give"
        )
    Range(above=0, most=1e7, also=" seconds").check("--timeout", timeout)
    if console.world_size() > 1:
        raise UserError(
            f"serve runs in one process, not {console.world_size()}; start one for each GPU, each on its own port"
        )
    from dcoder_cli.base.runs import model_labels
    from dcoder_cli.model.loading import load

    at = server.listen(host, port)  # before the model is read
    loaded = load(model, device, dtype, attention, cuda_graphs)
    if loaded.tokenizer is None:
        raise UserError(f"model {model!r} has no tokenizer, and clients send text; add one to the checkpoint")
    if max_tokens is not None and max_tokens >= loaded.max_length:
        raise UserError(
            f"--max-tokens {max_tokens} leaves no room for a prompt in the model's context of {loaded.max_length}; lower it"
        )
    for finding in loaded.findings:
        console.note(f"note: {finding.subject}: {finding.message}")
    called = name or model_labels([model])[0]
    server.serve(
        loaded, at, Serving(called, timeout, max_tokens, key), slots, queue,
        lambda where: console.note(f"serving {called} at {where}/v1 with {slots} slots; Ctrl-C ends it"),
    )  # fmt: skip
