"""What of a config, a command line or a message nobody but its owner may read."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

# Words that name a secret: `api_key`, `HF_TOKEN`, `clientSecret`.
_WORDS = frozenset({
    *("key", "keys", "apikey", "apikeys", "accesskey", "secretkey", "token", "accesstoken", "authtoken", "bearer"),
    *("secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passcode"),
    *("credential", "credentials", "auth", "authorization", "cookie", "cookies"),
})
# In the query of an address also these, which are what a presigned one has.
_SIGNED = _WORDS | {"sig", "signature"}
_HIDDEN = "***"
# Shorter ones are no secrets, and blanking them out would make a text unreadable; a variable of the environment may
# hold any word, so it takes more to be one.
_SHORTEST, _SHORTEST_VARIABLE = 4, 8
# https://user:password@host, and https://token@host as code hosts have it; in the overrides of a sweep's job Hydra puts
# backslashes before some characters.
_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*\\?://[^\s/:@'\"]*:)[^\s/'\"]+@")
_USER = re.compile(r"(?P<before>https?\\?://)[^\s/:@'\"]+@")
_ESCAPED = re.compile(r"([\\()\[\]{}:=, \t])")
_QUERY = re.compile(r"(?P<before>[?&](?P<name>[\w.%-]+)\\?=)[^\s&#'\",\]}]+")
# The keys of a mapping that is written into an override: logger.wandb={api_key:...}
_KEY_INSIDE = re.compile(r"[{,]\s*['\"]?(?P<name>[\w.-]+)['\"]?\s*:")
# The variables that Hydra sets for a job, whatever they are called.
_ENVIRONMENT = "hydra.job.env_set"


def is_secret(path: Sequence[Any], value: Any) -> bool:
    """Say whether a value is a secret by its name.

    Args:
        path: The keys that lead to it, or other names.
        value: What stands there. A number with a fraction, a switch or nothing is none: `token_dropout: 0.1`.

    Returns:
        True if a word of the names is one for secrets.
    """
    if value is None or isinstance(value, (bool, float)):
        return False
    return bool(_words(" ".join(map(str, path))) & _WORDS)


def without_secrets(overrides: Sequence[str]) -> tuple[str, ...]:
    """Drop overrides that set a secret, such as `logger.wandb.api_key=...`, and blank secrets out in the others.

    Args:
        overrides: Overrides as given on the command line.

    Returns:
        The others, in their order; passwords in addresses, and values of variables of the environment that are named
        like a secret, are `***` in them.
    """
    return tuple(masked(override) for override in overrides if not _sets_secret(override))


def masked(text: str) -> str:
    """Blank out what is a secret wherever it stands.

    Args:
        text: Any text.

    Returns:
        The text with `***` for passwords in addresses, for signatures in their queries, and for the values of variables
        of the environment that are named like a secret.
    """
    text = _USER.sub(rf"\g<before>{_HIDDEN}@", _PASSWORD.sub(rf"\g<before>{_HIDDEN}@", text))
    text = _QUERY.sub(_without_signature, text)
    return blanked(text, _secret_variables(os.environ))


def blanked(text: str, found: Iterable[str]) -> str:
    """Blank out given secrets.

    Args:
        text: Any text.
        found: The secrets; those of fewer than 4 characters are left.

    Returns:
        The text with `***` for each, also where it is quoted as in Python, in an address or in an override, and for
        each of its lines.
    """
    forms = {form for secret in found for form in _forms(secret) if len(form) >= _SHORTEST}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, _HIDDEN)
    return text


def unread(text: str, variables: Iterable[str]) -> str:
    """Put the names of variables of the environment in the place of their values.

    Args:
        text: Any text.
        variables: Names of variables. The values of those that hold a path of this machine, or fewer than 8 characters,
            are left: they are no secrets.

    Returns:
        The text with `${oc.env:NAME}` for the value of each.
    """
    for name in sorted(variables):
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_VARIABLE and not os.path.exists(value):
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def _words(names: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", names)}


def _sets_secret(override: str) -> bool:
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    inside = [found["name"] for found in _KEY_INSIDE.finditer(value)]
    return key.startswith(_ENVIRONMENT) or is_secret([key, *inside], value)


def _without_signature(found: re.Match[str]) -> str:
    return f"{found['before']}{_HIDDEN}" if _words(found["name"]) & _SIGNED else found[0]


def _secret_variables(environment: Mapping[str, str]) -> list[str]:
    named = [value for name, value in environment.items() if is_secret([name], value)]
    return [value for value in named if len(value) >= _SHORTEST_VARIABLE]


def _forms(secret: str) -> set[str]:
    lines = secret.splitlines() if "\n" in secret else []
    long = [line for line in lines if len(line) >= _SHORTEST_VARIABLE]
    return {secret, repr(secret)[1:-1], quote(secret, safe=""), _ESCAPED.sub(r"\\\1", secret), *long}
