"""Finds passwords, tokens and keys in texts, and hides them.

Whatever is shown to people or sent away passes through `redact`: the console, pages, reports, and what loggers get of a
config. A config with a secret is refused (keys.py), because config.json must hold every value as it is.
"""

import re
from typing import Any

HIDDEN = "[redacted]"
_BEGINS = r"(?<![A-Za-z0-9])"
# Tokens by the prefix that their issuer gives them. The lengths are a little below the real ones.
_BY_PREFIX = "|".join(
    (
        "hf_[A-Za-z0-9]{30,}",  # Hugging Face
        r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}",  # GitHub, GitLab
        r"sk-[A-Za-z0-9]{20,}|sk-(?:proj|ant|svcacct|admin)-[\w-]{20,}",  # OpenAI, Anthropic
        "A[KS]IA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}",  # AWS, Google
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    )
)
# The value of a name such as api_key or HF_TOKEN: any text for a password, else only what was drawn at random.
_ANY = r"\w*(?:password|passwd|secret|api_?key|access_?token|auth_?token)"
_RANDOM = r"\w*(?:key|token)"
_IS = r"[\"']?\s*[=:]\s*[\"']?"
_AT_RANDOM = r"(?:[0-9a-f]{40}|(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{32,})(?![\w-])"
_PATTERNS = (
    re.compile(rf"{_BEGINS}()(?:{_BY_PREFIX})"),
    re.compile(r"(?i:(\bauthorization[\"']?\s*[=:]\s*[\"']?))(?i:(?:bearer|basic|digest|token) )?[^\s\"',;]+"),
    re.compile(r"(\w://)[^\s/@:\"']*:[^\s/@\"']+(?=@)"),  # a URL with USER:PASSWORD
    re.compile(rf"\b((?i:{_ANY}){_IS})(?!\[redacted)[^\s\"',;&()\[\]{{}}]{{4,}}"),
    re.compile(rf"\b((?i:{_RANDOM}){_IS}){_AT_RANDOM}"),
)


def redact(text: str) -> str:
    """Returns the text with `[redacted]` in place of each password, token or key in it.

    Recognizes tokens of known issuers by their prefix, a URL's USER:PASSWORD, the header Authorization, and values of
    names such as password, api_key or token.

    >>> redact("cannot open https://me:pass@host/a: WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567")
    'cannot open https://[redacted]@host/a: WANDB_API_KEY=[redacted]'
    """
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def has_secret(text: str) -> bool:
    """Returns whether `redact` would hide a part of the text."""
    return redact(text) != text


def redacted(tree: Any) -> Any:
    """Returns JSON-able data with every string redacted, and also strings whose name says that they are secret.

    >>> redacted({"wandb": {"password": "four words", "mode": "online"}})
    {'wandb': {'password': '[redacted]', 'mode': 'online'}}
    """
    if isinstance(tree, dict):
        return {
            redact(name): HIDDEN if isinstance(value, str) and has_secret(f"{name}={value}") else redacted(value)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return type(tree)(map(redacted, tree))
    return redact(tree) if isinstance(tree, str) else tree
