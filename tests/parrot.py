"""A tiny chat model that says what it was told to, hostile text included."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from helpers import make_model

NICE = 'def f(a):\n    return "日本é"\n'
HOSTILE = "\x1b]0;x\x07\x1b[2J\x9b31m\x7f\r\u202eb"
ANSWERS = {"sort": NICE, "hack": HOSTILE}
LENGTH = 32
_folder = tempfile.TemporaryDirectory(prefix="dcoder-parrot-")


@functools.cache
def parrot() -> Path:
    """The checkpoint: it answers "sort" with NICE and "hack" with HOSTILE in LENGTH new tokens. Made once a test run."""
    import torch

    from dcoder_cli import load

    folder = make_model(Path(_folder.name) / "parrot", context=128, hidden_size=64, intermediate_size=128)
    model = load(folder, device="cpu")
    tokenizer: Any = model.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows, eligible = [], []
    for question, answer in ANSWERS.items():
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(chat, add_special_tokens=False)["input_ids"]
        told = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        assert len(told) <= LENGTH, len(told)
        rows.append([*prompt, *told, *[0] * (LENGTH - len(told))])
        eligible.append([False] * len(prompt) + [True] * LENGTH)
    clean_BL, eligible_BL = torch.tensor(rows).repeat(4, 1), torch.tensor(eligible).repeat(4, 1)
    torch.manual_seed(0)
    model.train()
    steps = 400
    optimizer = torch.optim.AdamW(model.parameters())
    loss = torch.tensor(0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        masked_BL = (torch.rand(clean_BL.shape) < torch.rand(len(clean_BL), 1) * 1.2 + 0.1) & eligible_BL
        noised_BL = clean_BL.masked_fill(masked_BL, model.ids.mask)
        loss = torch.nn.functional.cross_entropy(model.logits(noised_BL)[masked_BL], clean_BL[masked_BL])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, loss.item()
    model.save(folder, stage="sft")
    return folder
