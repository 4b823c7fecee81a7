"""Tiny tokenizers of the kinds that checkpoints come with, made on the spot."""

from __future__ import annotations

from typing import Any

from helpers import make_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
KINDS = ("byte-level", "llama-2", "llama-2-legacy", "metaspace")


def tokenizer_like(kind: str, bos: bool = False) -> Any:
    """Of one of KINDS. All but "byte-level" write a space as U+2581, put one before a text, and take it away again when
    they decode; a character that they do not know is bytes, a token each. `bos`: `<s>` is put before every text."""
    if kind == "byte-level":
        return make_tokenizer()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(33, 127)]
    words = ["▁▁", "▁▁▁▁", "re", "ret", "▁r", "▁x"]
    pairs = [("▁", "▁"), ("▁▁", "▁▁"), ("r", "e"), ("re", "t"), ("▁", "r"), ("▁", "x")]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters, *words]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "llama-2-legacy":  # every stretch of text gets a space, those behind special tokens too
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:  # only the beginning of the whole
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    fallback = [decoders.ByteFallback(), decoders.Fuse()]
    if kind == "metaspace":
        backend.decoder = decoders.Sequence([decoders.Metaspace("▁", prepend_scheme="first"), *fallback])
    else:
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), *fallback, decoders.Strip(" ", 1, 0)])
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=True,  # as Llama-2's says; code must be decoded without
    )
