"""A tokenizer's files as transformers 4 reads them too: the version for which the families' public code was written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.files import write_json

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip

_OF_THE_LOADING = ("backend", "is_local", "local_files_only", "name_or_path", "tokenizer_file")  # not of the tokenizer


def write(source: Path, target: Path, tokenizer: Any) -> None:
    """The tokenizer of the checkpoint folder `source` into an existing folder: its files as they are, but for the config.

    Args:
        tokenizer: as it was loaded from `source`; saved anew where there is no tokenizer.json, which some families' own code
            would be needed to do without.
    """
    if (source / "tokenizer.json").is_file():
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    else:
        tokenizer.save_pretrained(str(target))
    file = target / "tokenizer_config.json"
    before = jsonl.document(file) if file.is_file() else {}
    write_json(file, config(before, tokenizer))


def config(before: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4 and 5 read it.

    Version 5 writes a class that 4 does not have (TokenizersBackend), the extra special tokens as a list, on which 4.47 on
    stumbles, and the chat template in a file of its own, which 4.46 does not look for. What names code in the folder it came
    from becomes the general class, which reads tokenizer.json.
    """
    new = {key: value for key, value in before.items() if key not in _OF_THE_LOADING}
    own = [reference for reference in _references(new.get("auto_map")) if "--" not in reference]
    if own:
        del new["auto_map"]
    if own or new.get("tokenizer_class") in (None, "TokenizersBackend"):
        new["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(new.get("extra_special_tokens"), list):
        extra = new.pop("extra_special_tokens")
        new.setdefault("additional_special_tokens", extra)
    for name in ("bos", "eos", "pad", "mask", "unk"):
        if new.get(f"{name}_token") is None and getattr(tokenizer, f"{name}_token", None) is not None:
            new[f"{name}_token"] = getattr(tokenizer, f"{name}_token")
    if "chat_template" not in new and isinstance(getattr(tokenizer, "chat_template", None), str):
        new["chat_template"] = tokenizer.chat_template
    return new


def _references(auto_map: Any) -> list[str]:
    """Every class that a tokenizer's auto_map names; {"AutoTokenizer": [slow, fast]}, either of them null."""
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    listed = [one for value in values for one in (value if isinstance(value, (list, tuple)) else [value])]
    return [one for one in listed if isinstance(one, str)]
