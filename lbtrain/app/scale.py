"""`lbtrain scale batch=4096 base_batch=256 optimizer=adamw`: what LearningRateScaling would do, without training."""

import importlib.resources
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lbtrain.app.signatures import HYDRA_KEYS, ConfigError, arguments, locate, suggestion

# What a shell reports of a command that was called wrongly.
_WRONG_USE = 2

# Key -> (what the usage says of it, an example for messages).
KEYS = {
    "batch": ("global batch size to scale to, samples; or", "4096"),
    "per_device": ("  samples per batch and device, with", "64"),
    "devices": ("  devices that train on batches of their own (1), and", "8"),
    "accumulate": ("  batches per device and optimizer step (1)", "2"),
    "base_batch": ("global batch size that the values were tuned at, samples", "256"),
    "optimizer": ("a name of conf/optimizer, or a dotted class (momentum)", "adamw"),
    "lr": ("learning rate tuned at base_batch (the optimizer's default)", "0.1"),
    "rule": ("auto, linear, sqrt, none or an exponent (auto)", "sqrt"),
    "adam_moments": ("true scales betas and eps, too (false)", "true"),
    "decay": ("keep, or scale: the same weight decay per epoch (keep)", "scale"),
    "reduction": ("of the loss over a batch: mean or sum (mean)", "sum"),
    "base_batches": ("for a sum: batches per step that lr was tuned at (1)", "1"),
    "samples": ("size of the training set; adds steps and decay per epoch", "50000"),
    "epochs": ("adds the number of steps; needs samples", "90"),
}
_COUNTS = ("batch", "per_device", "devices", "accumulate", "base_batch", "base_batches", "samples", "epochs")
_RULES = ("auto", "linear", "sqrt", "none")
_CHOICES = {"decay": ("keep", "scale"), "reduction": ("mean", "sum")}
_DEFAULTS = {"rule": "auto", "adam_moments": False, "decay": "keep", "reduction": "mean", "base_batches": 1}
USAGE = "\n".join([
    "usage: lbtrain scale batch=4096 base_batch=256 lr=0.1 optimizer=adamw",
    "",
    "Prints the hyperparameters for another batch size, and the laws used; nothing is trained.",
    "",
    *(f"  {key:<13} {text}" for key, (text, _) in KEYS.items()),
    "",
    "Any argument of the optimizer is a key, too: momentum=0.9 betas=[0.9,0.95] eps=1e-6 weight_decay=0.1",
])


# What these are called in a config or in the callback.
_MEANT = {"base_batch_size": "base_batch", "batch_size": "per_device", "learning_rate": "lr", "global_batch": "batch"}
_MEANT |= {"accumulate_grad_batches": "accumulate"}


def main(argv: Sequence[str]) -> int:
    """Print the report.

    Args:
        argv: The command line after `scale`, as key=value.

    Returns:
        Exit code: 0, or 2 if an argument is wrong, which is said in one line on standard error.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        settings = read(argv)
        # torch is imported here, so a typo is answered without it.
        from lbtrain.app.scale_table import show

        show(settings)
    except (ConfigError, ValueError) as error:
        print(f"lbtrain scale: {' '.join(str(error).split())}", file=sys.stderr)
        return _WRONG_USE
    return 0


def read(argv: Sequence[str]) -> dict[str, Any]:
    """Read and check the command line.

    Args:
        argv: Words of the form key=value, in Hydra's grammar.

    Returns:
        By key of `KEYS`, with `batch` (samples) and its three parts always filled in, and None for what is not given;
        `node` is the config of the optimizer, `default` that of its YAML (None without one), `name` what it was called.

    Raises:
        ConfigError: If an argument is unknown, missing or out of range.
    """
    given = _parsed(argv)
    node, name = _node(given.pop("optimizer", "momentum"))
    default = None if "." in name else dict(node)
    own = _arguments(node) if default is None else [key for key in node if key not in HYDRA_KEYS]
    # As the callback's argument is called; the optimizer's own of this name is a number.
    if given.get("weight_decay") in _CHOICES["decay"]:
        given["decay"] = given.pop("weight_decay")
    for key in [key for key in given if key in own]:
        node[key] = given.pop(key)
    for key in given:
        if key not in KEYS:
            name = key.rpartition(".")[2]
            known = dict.fromkeys([*KEYS, *own])
            meant = f"; did you mean {_MEANT[name]!r}?" if name in _MEANT else suggestion(name, known)
            raise ConfigError(f"unknown key {key!r}{meant}")
    _check(given, node)
    settings = {**dict.fromkeys(KEYS), **_DEFAULTS, **given, "node": node, "default": default, "name": name}
    return {**settings, **_batch(settings)}


def _parsed(argv: Sequence[str]) -> dict[str, Any]:
    parser, given = OverridesParser.create(), {}
    for word in argv:
        key, equals, _ = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"cannot read {word!r}: write key=value, such as base_batch=256")
        if key in given:
            raise ConfigError(f"{key} is given twice: keep one")
        try:
            override = parser.parse_override(word)
            given[key] = override.value()
        except HydraException as error:
            raise ConfigError(f"cannot read {word!r}: write {key}=VALUE, with a list as {key}=[0.9,0.95]") from error
        if override.is_sweep_override() or override.get_key_element() != key:
            raise ConfigError(f"{key} must be one value, got {word!r}: call lbtrain scale once for each")
    return given


def _node(optimizer: Any) -> tuple[dict[str, Any], str]:
    """Return the config of an optimizer, and its name.

    Raises:
        ConfigError: If there is none of this name.
    """
    folder = importlib.resources.files("lbtrain.conf") / "optimizer"
    known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if optimizer in known:
        return dict(OmegaConf.to_container(OmegaConf.create((folder / f"{optimizer}.yaml").read_text()))), optimizer
    if isinstance(optimizer, str) and "." in optimizer:
        return {"_target_": optimizer, "_partial_": True}, optimizer
    way_out = suggestion(str(optimizer), known)
    raise ConfigError(f"optimizer must be one of conf/optimizer or a dotted class, got {optimizer!r}{way_out}")


def _arguments(node: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a class that has no YAML.

    Raises:
        ConfigError: If it does not import, or is no class.
    """
    try:
        target = locate(node["_target_"])
    except LookupError as error:
        raise ConfigError(f"optimizer: {error}") from error
    if not isinstance(target, type):
        raise ConfigError(f"optimizer must be a class, got {node['_target_']!r}: write one such as torch.optim.NAdam")
    takes = arguments(target)
    return [name for name in (takes.names if takes else ()) if name != "params"]


def _check(given: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Refuse values out of range; the laws and the optimizer check their own.

    Raises:
        ConfigError: At the first one; the message names the key, the rule, the value and what to write.
    """
    for key, value in given.items():
        rule = None
        if key in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            rule = "a whole number, at least 1"
        elif key in _CHOICES and value not in _CHOICES[key]:
            rule = " or ".join(_CHOICES[key])
        elif key == "adam_moments" and not isinstance(value, bool):
            rule = "true or false"
        if rule is not None:
            raise ConfigError(f"{key} must be {rule}, got {value!r}: write {key}={KEYS[key][1]}")
    rule = given.get("rule", "auto")
    if rule not in _RULES and (isinstance(rule, bool) or not isinstance(rule, int | float)):
        way_out = suggestion(str(rule), _RULES)
        raise ConfigError(f"rule must be {', '.join(_RULES)} or an exponent, got {rule!r}{way_out}")
    rate = node.get("lr", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"lr must be a number above 0, got {rate!r}: write lr={KEYS['lr'][1]}")
    if "base_batch" not in given:
        raise ConfigError("base_batch is missing, the batch size that lr was tuned at: write base_batch=256")
    if "epochs" in given and "samples" not in given:
        raise ConfigError("epochs needs the size of the training set: add samples=50000, or leave epochs out")


def _batch(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the global batch and its parts.

    Raises:
        ConfigError: If it is given not at all, or in two ways that differ.
    """
    devices, accumulate = settings["devices"] or 1, settings["accumulate"] or 1
    batch, per_device = settings["batch"], settings["per_device"]
    if batch is None and per_device is None:
        raise ConfigError("batch is missing: write batch=4096 (global), or per_device=64 devices=8 accumulate=8")
    parts = f"devices={devices} x accumulate={accumulate}"
    product = None if per_device is None else per_device * devices * accumulate
    batch = product if batch is None else batch
    if product is None and batch % (devices * accumulate):
        raise ConfigError(f"batch must be a multiple of {parts}, got {batch}: give per_device in its place")
    if product not in {None, batch}:
        raise ConfigError(f"batch must be per_device={per_device} x {parts} = {product}, got {batch}: leave one out")
    per_device = batch // (devices * accumulate)
    return {"batch": batch, "per_device": per_device, "devices": devices, "accumulate": accumulate}
