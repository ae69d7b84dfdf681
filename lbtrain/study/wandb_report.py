"""The report of a sweep as a W&B report: its runs, panels over them, and the findings; only publishing is online."""

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbtrain.records import replace_file
from lbtrain.study.forms import topics
from lbtrain.study.report import Report
from lbtrain.study.wandb_panels import panels, pinned

# Beside the results of a run with wandb: its identity, and the group that wandb has it in.
RUN_NAME = "wandb_run.json"
_INSTALL = "the W&B report needs the package wandb-workspaces: pip install 'lbtrain[wandb-report]'"
_LONGEST_TITLE = 128  # letters, wandb's limit


class PublishError(RuntimeError):
    """A W&B report could not be built or published; the message is one line and names the next move."""


@dataclass(frozen=True)
class WandbRuns:
    """The runs of a sweep, as wandb knows them.

    Args:
        ids: Of the runs.
        groups: In which wandb has them; None where a run has no group.
    """

    ids: tuple[str, ...]
    groups: tuple[str | None, ...]

    def expression(self) -> str:
        """Return the filter that selects these runs in wandb.

        Returns:
            By their groups; by their identities where a run has none.
        """
        if all(self.groups):
            return f"Group in {sorted({str(group) for group in self.groups})!r}"
        return f"ID in {sorted(set(self.ids))!r}"


def publish(report: Report, folders: Sequence[str | Path], entity: str, project: str) -> str:
    """Build the W&B report and put it on the server.

    Args:
        report: The local one.
        folders: Those that it was made from.
        entity: User or team that owns the report.
        project: In which the runs are.

    Returns:
        Address of the report.

    Raises:
        PublishError: If it cannot be built, or the server not be reached; the local report stands in any case.
    """
    made = build(report, folders, entity, project)
    try:
        made.save()
        return str(made.url)
    except Exception as error:  # of many kinds: no key, no network, no such project
        server = os.environ.get("WANDB_BASE_URL") or "the wandb server"
        said = " ".join(str(error).split()) or type(error).__name__
        raise PublishError(
            f"the W&B report could not be published to {entity}/{project} on {server}: {said}; the local report is "
            f"complete: {report.html}"
        ) from error


def write_spec(report: Report, folders: Sequence[str | Path], entity: str, project: str, path: str | Path) -> None:
    """Write what would be published as JSON, without a network.

    Args:
        report: The local one.
        folders: Those that it was made from.
        entity: User or team that would own it.
        project: In which the runs are.
        path: File to write; its folder exists.
    """
    text = json.dumps(spec(build(report, folders, entity, project)), indent=1, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode())


def build(report: Report, folders: Sequence[str | Path], entity: str, project: str) -> Any:
    """Build the W&B report; nothing is asked of the network.

    Args:
        report: The local one.
        folders: Those that it was made from.
        entity: User or team that is to own it.
        project: In which the runs are.

    Returns:
        A report of wandb-workspaces: the overview, the panels over the runs, and the findings by topic.

    Raises:
        PublishError: If wandb-workspaces is not installed, or the runs have no wandb run.
    """
    try:
        wr: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise PublishError(_INSTALL) from error
    known, columns = wandb_runs([Path(folder) for folder in report.table["folder"]]), pinned(report.table)
    if not known.ids:
        where = " ".join(map(str, folders))
        raise PublishError(f"no run in {where} was logged to wandb: repeat the sweep with logger=[csv,wandb]")
    counted = (
        f"{len(known.ids)} of the {len(report.table)} runs were logged to wandb, and are shown here once uploaded."
    )
    # Without a project of its own, which would be looked up on the server: the report's project holds for it.
    runs = wr.Runset(name=report.page.title, filters=known.expression(), pinned_columns=columns)
    blocks: list[Any] = [wr.P(report.page.overview), wr.P(counted)]
    blocks.append(wr.PanelGrid(runsets=[runs], panels=panels(wr, report.table)))
    for topic, texts in topics(report.page):
        blocks += [wr.H2(topic), wr.UnorderedList(list(texts))]
    if report.page.notes:
        blocks += [wr.H2("How to read this"), wr.UnorderedList(list(report.page.notes))]
    return wr.Report(
        project=project,
        entity=entity,
        title=report.page.title[:_LONGEST_TITLE],
        description="Made by lbtrain from the summaries of the runs.",
        blocks=blocks,
        width="fluid",
    )


def spec(report: Any) -> dict[str, Any]:
    """Return what wandb-workspaces sends to the server.

    Args:
        report: As `build` makes it.

    Returns:
        Plain values: `project`, `entity`, `title`, `description` and the `spec` with its blocks.
    """
    model = report._to_model()
    sent: dict[str, Any] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    about = {"entity": report.entity, "project": report.project, "title": report.title}
    return {**about, "description": report.description, "spec": sent}


def wandb_runs(folders: Sequence[Path]) -> WandbRuns:
    """Find what wandb has of runs.

    Args:
        folders: Of the runs.

    Returns:
        Identity and group of each run that was logged to wandb.

    Raises:
        PublishError: If a note of it cannot be read.
    """
    found: list[tuple[str, str | None]] = []
    for folder in folders:
        try:
            known = json.loads((folder / RUN_NAME).read_text())
            found.append((known["id"], known["group"]))
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise PublishError(f"{folder / RUN_NAME} cannot be read ({error!r}): repeat the run") from error
    return WandbRuns(tuple(name for name, _ in found), tuple(group for _, group in found))
