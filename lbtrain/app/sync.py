"""`lbtrain sync SWEEP_DIR`: upload the runs that wandb has kept offline; wandb's own command does it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lbtrain.app.wandb_files import OfflineRun, offline_runs, online_runs
from lbtrain.app.wandb_server import has_key, server, unreachable

_FAILED, _WRONG_USE = 1, 2
# Runs that are listed one by one.
_MOST_LINES = 30


def main(words: Sequence[str]) -> int:
    """Say what would be uploaded, ask, and upload it.

    Args:
        words: The command line after `sync`.

    Returns:
        Exit code: 0 when all that could be uploaded is, or with `--dry-run`; 1 when something was not uploaded, or all
        that is left is still being written; 2 when the command line cannot be followed.
    """
    options = _parser().parse_args(words)
    try:
        url, (runs, waiting) = server(options.base_url), _left(options.folders)
    except ValueError as error:
        print(f"lbtrain sync: {error}", file=sys.stderr)
        return _WRONG_USE
    if not runs:
        return _FAILED if waiting and not options.dry_run else 0
    _announce(runs, url, options)
    if options.dry_run:
        print("nothing was uploaded: --dry-run")
        return 0
    refused = _refusal(url, options)
    if refused is not None:
        return refused
    return _upload(runs, url, options)


def _refusal(url: str, options: argparse.Namespace) -> int | None:
    """Return the exit code where there is no key, no permission or no server, which has then been said; else None."""
    if not has_key(url):
        login = f"wandb login --host {url}"
        print(f"lbtrain sync: there is no key for {url}: set WANDB_API_KEY, or run {login}", file=sys.stderr)
        return _FAILED
    if not options.yes and not sys.stdin.isatty():
        print("lbtrain sync: nobody is there to ask; add --yes to upload these runs", file=sys.stderr)
        return _WRONG_USE
    if not options.yes and input("Upload them? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was uploaded")
        return _FAILED
    reason = unreachable(url)
    if reason is not None:
        print(f"lbtrain sync: {url} cannot be reached ({reason}); the runs stay here for later", file=sys.stderr)
        return _FAILED
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lbtrain sync",
        description="Upload the runs of a sweep that wandb has kept offline, after saying which. The uploaded ones "
        "stay on disk; wandb marks them, and they are not uploaded again.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP_DIR", help="folder of a sweep or of a run")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be uploaded; needs no network")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument("--project", help="upload to this project instead of the one of each run")
    parser.add_argument("--entity", help="upload for this user or team instead of the one of each run")
    parser.add_argument("--base-url", help="address of a self-hosted server (default: WANDB_BASE_URL or wandb login)")
    return parser


def _left(folders: Sequence[Path]) -> tuple[list[OfflineRun], int]:
    """Return what is to be uploaded, and how many runs are still being written; say why the others are left out.

    Raises:
        ValueError: If a folder is not there or holds no run of wandb.
    """
    found: dict[Path, OfflineRun] = {}
    online = 0
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        sessions, others = offline_runs(folder), online_runs(folder)
        if not sessions and not others:
            raise ValueError(f"{folder} holds no run of wandb; runs have one with logger=[csv,wandb]")
        found |= {session.folder.resolve(): session for session in sessions}
        online += len(others)
    synced = [session for session in found.values() if session.is_synced]
    still = _still_written(list(found.values()))
    held = {session.id for session in still}
    rest = [session for session in found.values() if not session.is_synced and session.id not in held]
    empty, left = [session for session in rest if session.is_empty], [s for s in rest if not s.is_empty]
    if online:
        print(f"{_counted(online)} uploaded while it ran: left out")
    if synced:
        print(f"{_counted(len(synced))} uploaded already: left out")
    for session in still:
        print(f"{session.folder}: a job seems to write to it still: left out; repeat this command when it has ended")
    for session in empty:
        print(f"{session.folder}: its job was killed before wandb wrote anything: left out")
    if not left and held:
        verb = "is" if len(held) == 1 else "are"
        print(f"nothing can be uploaded yet: {_counted(len(held))} {verb} still being written")
    elif not left:
        print("nothing is left to upload")
    # The sessions of a resumed run in their order, as wandb wants them.
    return sorted(left, key=_began), len(held)


def _began(session: OfflineRun) -> str:
    return session.folder.name  # begins with the time


def _still_written(sessions: Sequence[OfflineRun]) -> list[OfflineRun]:
    """Return the sessions that a job seems to write to: the newest of its run at most, since a job goes on in one."""
    newest = {session.id: session for session in sorted(sessions, key=_began)}
    return [session for session in newest.values() if session.is_open() and not session.is_synced]


def _announce(runs: Sequence[OfflineRun], url: str, options: argparse.Namespace) -> None:
    ids = {run.id for run in runs}
    more = f" in {len(runs)} sessions" if len(runs) > len(ids) else ""
    print(f"{_counted(len(ids))}{more} to upload, {_size(sum(run.size for run in runs))}, to {url}")
    for where in sorted({_place(run, options) for run in runs}):
        print(f"  {where}")
    for run in runs[:_MOST_LINES]:
        end = "no end: killed" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed"
        print(f"  {run.folder.parents[1]}: {run.name or 'without a name'} (id {run.id}, {_size(run.size)}, {end})")
    if len(runs) > _MOST_LINES:
        print(f"  and {len(runs) - _MOST_LINES} more")


def _place(run: OfflineRun, options: argparse.Namespace) -> str:
    entity = options.entity or run.entity or "the default one of the key"
    group = f"group {run.group}" if run.group else "no group"
    return f"project {options.project or run.project or 'unknown'}, entity {entity}, {group}"


def _upload(runs: Sequence[OfflineRun], url: str, options: argparse.Namespace) -> int:
    """Call wandb's command, and believe only its marks.

    Returns:
        Exit code.
    """
    given = [*(["--project", options.project] if options.project else [])]
    given += ["--entity", options.entity] if options.entity else []
    command = [sys.executable, "-m", "wandb", "sync", *given, *(str(run.folder.absolute()) for run in runs)]
    # The mode that the jobs ran with must not keep the upload offline.
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    code = subprocess.run(command, env=environment | {"WANDB_BASE_URL": url}, check=False).returncode
    # It also ends with code 0 where the server has refused a run or the key.
    failed = [run for run in runs if not run.is_synced]
    if code or failed:
        said = f"wandb sync has ended with code {code}; " if code else ""
        print(
            f"lbtrain sync: {said}{len(failed)} of {len(runs)} were not uploaded; what wandb has said is above, and "
            "the same command goes on with the rest",
            file=sys.stderr,
        )
        for run in failed[:_MOST_LINES]:
            print(f"  {run.folder}", file=sys.stderr)
        return _FAILED
    print(f"uploaded {_counted(len({run.id for run in runs}))} to {url}; the files stay here")
    return 0


def _counted(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
