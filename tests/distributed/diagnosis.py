"""What both ranks of test_diagnostics_ranks.py run: a diagnosis under DDP."""

import contextlib
import io
import os
import sys
import warnings

import torch

from lbtrain import OptimizationDiagnostics
from tests.modules import fit, same
from tests.unit.callbacks.diagnosed import Classifier, clusters

# Batches of 8 from every second sample are, together, the batches of 16 of one process.
TWO = {"strategy": "ddp", "devices": 2}
CASES = {
    "healthy": {},
    "dead": {"bias": -10.0},
    "unstable": {"optimizer": lambda p: torch.optim.SGD(p, lr=30.0, momentum=0.9)},
}


def diagnosis(case, loader, callbacks=True, **options):
    """Return the module and, with the diagnosis, what it found and printed."""
    torch.manual_seed(0)
    module, doctor = Classifier(**CASES[case]), OptimizationDiagnostics(every_n_steps=8, figures=False)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fit(module, loader, [doctor] if callbacks else [], max_epochs=6, **options)
    return module, doctor.result, out.getvalue()


def of_ranks(folder):
    """Return what this rank has found, in plain Python."""
    found, weights = {}, {}
    os.chdir(folder)
    for case in CASES:
        module, result, out = diagnosis(case, clusters(batch_size=8), **TWO)
        found[case] = {
            "problems": [f.problem for f in result.findings],
            "evidence": [f.evidence for f in result.findings],
            "checked": list(result.checked),
            "left_out": dict(result.left_out),
            "printed": out,
        }
        weights[case] = module.state_dict()
    alone, _, _ = diagnosis("healthy", clusters(batch_size=8), callbacks=False, **TWO)
    return found | {"same": same(weights["healthy"], alone.state_dict())}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.save(of_ranks(sys.argv[1]), f"{sys.argv[1]}/rank{os.environ['LOCAL_RANK']}.pt")
