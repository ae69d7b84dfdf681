"""Which wandb server is meant, and whether this machine has a key for it; the key itself is never read out."""

import configparser
import netrc
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

PUBLIC = "https://api.wandb.ai"  # wandb's own default
# Seconds after which a server that has not answered is not there; wandb itself would go on asking for days.
_PATIENCE_S = 15.0


def server(base_url: str | None = None) -> str:
    """Find the server that wandb would talk to.

    Args:
        base_url: The one that is asked for; None takes WANDB_BASE_URL, else the one of `wandb login --host`, else the
            public one.

    Returns:
        Its address, without a slash at the end.

    Raises:
        ValueError: If the address is not one of http or https.
    """
    found = base_url or os.environ.get("WANDB_BASE_URL") or _from_login() or PUBLIC
    address = urlparse(found)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"base_url must be an address such as https://wandb.example.org, got {found!r}")
    return found.rstrip("/")


def has_key(url: str) -> bool:
    """Look whether there is a key for a server.

    Args:
        url: Its address.

    Returns:
        Whether the environment names one (WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE), or the netrc file for this host.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def unreachable(url: str) -> str | None:
    """Ask a server for a sign of life; no key is sent.

    Args:
        url: Its address.

    Returns:
        Why it cannot be reached; None if it answers, whatever the answer.
    """
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=_PATIENCE_S).close()  # through a proxy, where one is set
    except urllib.error.HTTPError as answer:
        answer.close()  # it is there, and has no such page
    except OSError as error:
        reason = getattr(error, "reason", error)
        # wandb may know a certificate that Python does not.
        return None if isinstance(reason, ssl.SSLError) else str(reason)
    return None


def _from_login() -> str | None:
    """Return the server that `wandb login --host` has kept, in the working directory or for this user."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    places = [Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings", home / "settings"]
    for place in places:
        kept = configparser.ConfigParser(interpolation=None)
        try:
            kept.read(place)
        except (OSError, configparser.Error):
            continue  # wandb itself says what is wrong with its file
        if kept.has_option("default", "base_url"):
            return kept.get("default", "base_url")
    return None
