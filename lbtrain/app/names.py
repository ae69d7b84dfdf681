"""What a run and its sweep are called."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lbtrain.app.config import without_secrets

# These say nothing about the result of a run.
_HIDDEN = ("experiment=", "ckpt_path=")
# Given to each job of a sweep: bars of several runs at a time, in files, say nothing.
QUIET = "trainer.enable_progress_bar=false"


def given_overrides() -> list[str]:
    """Return the overrides that this job was given, as they were written.

    Returns:
        Those of the config, not of the `hydra` node; empty outside of a Hydra job.
    """
    if not HydraConfig.initialized():
        return []
    # Hydra keeps them in a config: read item by item, an override with ${...} would come out resolved, secrets and all.
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [o for o in overrides if not o.startswith(QUIET.partition("=")[0])]


def job_name(overrides: Sequence[str]) -> str:
    """Return a readable name made of a job's overrides, secrets left out.

    Args:
        overrides: As given on the command line.

    Returns:
        For example `optimizer=adam batch_size=64`; `default` for none.
    """
    parts = []
    for override in without_secrets(overrides):
        if not override.startswith(_HIDDEN):
            key, _, value = override.lstrip("+").partition("=")
            parts.append(f"{key.rsplit('.', 1)[-1]}={value}")
    return " ".join(parts) or "default"


def labels(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Return what sets each job apart: its overrides less what all share, lists less their shared entries.

    For example `optimizer=adam +sam`, where other jobs have the same callbacks without SAM.

    Args:
        job_overrides: The overrides of each job.

    Returns:
        One text per job; `run` where nothing sets it apart, and the name of a job that is alone.
    """
    if len(job_overrides) == 1:
        return [job_name(job_overrides[0])]
    jobs = [dict(override.partition("=")[::2] for override in without_secrets(own)) for own in job_overrides]
    shared = set.intersection(*(set(job.items()) for job in jobs))
    lists = [{k: set(v[1:-1].split(",")) for k, v in job.items() if v.startswith("[")} for job in jobs]
    found = []
    for job, own in zip(jobs, lists, strict=True):
        parts = {key: value for key, value in job.items() if (key, value) not in shared}
        for key in own.keys() & parts.keys():
            common = set.intersection(*(other.get(key, set()) for other in lists))
            parts[key] = "+".join(["", *sorted(own[key] - common)])
        named = (value if value.startswith("+") or not value else f"{key}={value}" for key, value in parts.items())
        found.append(" ".join(filter(None, named)) or "run")
    return found


def sweep_name() -> str | None:
    """Return the last two folders of the sweep's directory, when this job is part of a sweep.

    Returns:
        For example `2026-01-31/12-00-00`; None for a single run, and outside of a Hydra job.
    """
    if not HydraConfig.initialized():
        return None
    sweep = Path(HydraConfig.get().sweep.dir).absolute()
    inside = sweep in Path(HydraConfig.get().runtime.output_dir).absolute().parents
    return "/".join(sweep.parts[-2:]) if inside else None
