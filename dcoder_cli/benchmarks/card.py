"""The model card of an exported checkpoint: Markdown with the hub's metadata on top, every number from a file.

What was not measured or not recorded is said to be so. All text of a user's files goes through base/markup.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dcoder_cli.base.markup import block, clean, code, front_matter, table, words
from dcoder_cli.benchmarks import card_history, card_tables, suites

Facts = dict[str, Any]


def text(facts: Mapping[str, Any]) -> str:
    """README.md of an exported folder.

    Args:
        facts: of `publish.facts_of`.
    """
    parts = [
        front_matter(metadata(facts)),
        f"# {words(facts['name'])}",
        _what(facts),
        "## Load it",
        *_loading(facts),
        "## Training",
        *card_tables.training(facts),
        "## Scores",
        *card_tables.scores(facts),
        "## Decoding order",
        *card_tables.orders(facts),
        "## Use",
        _use(facts),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def metadata(facts: Mapping[str, Any]) -> Facts:
    """What the hub reads (https://huggingface.co/docs/hub/model-cards#model-card-metadata)."""
    found: Facts = {
        "library_name": "transformers" if facts["auto_map"] or facts["model"]["kind"] == "ar" else "dcoder",
        "pipeline_tag": "text-generation",
        "tags": ["dcoder", "code", *(["masked-diffusion"] if facts["model"]["kind"] == "diffusion" else [])],
    }
    if facts["licence"]:
        found["license"] = facts["licence"]
    if facts["base_model"]:
        found["base_model"] = facts["base_model"]
        found["base_model_relation"] = "finetune"
    datasets = card_history.hub_datasets(facts["stages"])
    if datasets:
        found["datasets"] = datasets
    results = [one for score in facts["scores"] for one in _indexed(score)]
    if results:
        found["model-index"] = [{"name": facts["name"], "results": results}]
    return found


def _indexed(score: Mapping[str, Any]) -> list[Facts]:
    """A score as entries of the hub's model-index."""
    known = suites.table().get(score["task"])
    hub = next((source.hub for source in known.sources if source.hub), None) if known else None
    dataset = {"type": hub or score["task"], "name": card_tables.task_of(score)}
    metrics = [
        {"type": k, "name": f"{metric} {k}, percent", "value": by_k[k]["score"]}
        for metric, by_k in score["scores"].items()
        for k in card_tables.ends(by_k)
    ]
    return [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}]


def _what(facts: Mapping[str, Any]) -> str:
    model = facts["model"]
    kind = "masked-diffusion language model" if model["kind"] == "diffusion" else "autoregressive language model"
    ids = ", ".join(f"{name} {value}" for name, value in model["ids"].items() if value is not None)
    cast = f", cast from {model['stored_as']}" if model["cast"] else ", as stored"
    rows = [
        ["layout", words(model["system"])],
        ["parameters", f"{model['parameters']:,}"],
        ["number format", f"{model['dtype']}{cast}"],
        ["context", f"{model['context']:,} tokens"],
        ["vocabulary", f"{model['vocab_size']:,} rows; {ids}"],
    ]
    if model["kind"] == "diffusion":
        rows.append(["prediction", f"hidden state {'i-1' if model['shift'] else 'i'} predicts token i"])
    rows += [
        ["stage", words(model["stage"] or "not recorded")],
        ["origin", words(facts["base_model"] or facts["origin"] or facts["began_with"] or "not recorded")],
        ["weights", f"{code(facts['weights'][:16])} (dcoder's id of the weights before export)"],
    ]
    return f"A {kind}, exported by dcoder {words(facts['dcoder'])}.\n\n{table(['', ''], rows)}"


def _loading(facts: Mapping[str, Any]) -> list[str]:
    name, has_tokenizer = _string(facts["name"]), facts["model"]["tokenizer"]
    tokens = [f"tokenizer = AutoTokenizer.from_pretrained({name})"] if has_tokenizer else []
    also = ", AutoTokenizer" if has_tokenizer else ""
    found = []
    public = facts["public"]
    if facts["auto_map"]:
        found.append(block("\n".join([
            f"from transformers import AutoModel{also}",
            f'model = AutoModel.from_pretrained({name}, torch_dtype="auto", trust_remote_code=True)',
            *tokens,
        ]), "python"))  # fmt: skip
        found.append(
            f"`config.json` points to the code of {code(public['repository'])}, which is downloaded and run; `code_revision=` pins it. "
            f"It was written for transformers {public['transformers']}, and transformers 5 does not load it."
        )
        if public["sampler"]:
            found.append(
                f"`model.{public['sampler']}(ids, max_new_tokens=256, steps=256, temperature=0.2, top_p=0.95, top_k=None, "
                'alg="entropy", alg_temp=0.0)` decodes; where nothing is said, that code takes its random order and a top-k of 50.'
            )
        else:
            found.append("That code computes logits; decoding is a script of its authors (`generate.py`), or dcoder's:")
    elif facts["model"]["kind"] == "ar":
        found.append(block("\n".join([
            f"from transformers import AutoModelForCausalLM{also}",
            f'model = AutoModelForCausalLM.from_pretrained({name})',
            *tokens,
        ]), "python"))  # fmt: skip
        found.append(
            "It is no diffusion model: transformers' own class computes it, and `config.json` names no other code."
        )
    else:
        found.append(f"`config.json` has no `auto_map`, so AutoModel does not load it: {facts['why_not']}.")
    prompt = '"def add(a, b):"' if has_tokenizer else "[1, 2, 3]"
    result = "text" if has_tokenizer else "tokens"
    found.append(block("\n".join([
        "from dcoder_cli import generate, load",
        f"model = load({name})",
        f"print(generate(model, [{prompt}], max_new_tokens=64)[0].{result})",
    ]), "python"))  # fmt: skip
    if not has_tokenizer:
        found.append("There is no tokenizer: prompts are lists of ids.")
    if facts["adapter"]:
        found.append("`adapter/` holds the LoRA adapter that is merged in the weights, as peft reads it.")
    return found


def _use(facts: Mapping[str, Any]) -> str:
    licence = "" if facts["licence"] else (
        "No licence was stated at export" + (f"; that of {words(facts['base_model'])} may bind" if facts["base_model"] else "") + ". "
    )  # fmt: skip
    return (
        f"{licence}Code that it writes is untrusted: run it in a sandbox. The facts of this card stand in "
        f"{code(card_history.FACTS)} for programs; every number is from a file of the training or of a measurement."
    )


def _string(value: str) -> str:
    """A Python string literal."""
    return json.dumps(clean(value), ensure_ascii=False)
