"""Whether the hub can be reached, asked before a library spends half a minute on retries."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit


def fail_at_once_offline() -> None:
    """Where the hub's name does not resolve, tell its libraries to use their caches only."""
    if _in_reach():
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("huggingface_hub.constants", "datasets.config"):  # they read the variable when they are imported
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = True


def _in_reach() -> bool:
    """Behind a proxy the name need not resolve, so there the answer is yes."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
