"""Sixteen things that break easily when sweeps, ranks, resuming and logging meet, and the tests that hold each.

1. Both ranks of a job have the same settings under `-m`, and a sweep has one directory.
   tests/cli/test_sweep_shapes.py::test_ranks_of_a_job_have_the_same_settings
2. A job that raises on rank zero fails alone, in time, with exit code 1, and the table lists it.
   tests/cli/test_acceptance_sweep.py::test_the_jobs_beside_one_that_fails_on_one_rank_finish
   tests/cli/test_sweep.py::test_failing_jobs_leave_the_others_finished
   tests/cli/test_sweep.py::test_report_is_written_and_lists_the_failures
3. The same command again starts only the job that failed.
   tests/cli/test_acceptance_sweep.py::test_the_same_command_again_starts_only_the_job_that_failed
4. A resumed run has the rates of the uninterrupted one, under every kind of schedule.
   tests/unit/callbacks/test_lr_schedules.py::test_every_schedule_equals_one_built_with_the_scaled_rate
   tests/training/test_resume.py::test_a_killed_run_goes_on_as_if_nothing_had_happened
5. Resumed on one device of two, a run halves the rate and says so.
   tests/distributed/test_scaling_ranks.py::test_a_run_resumed_on_one_device_of_two_halves_the_rates_and_says_so
6. Scaling the rate does not make a stateful loader forget where it was.
   tests/unit/callbacks/test_lr_loaders.py::test_the_state_of_a_stateful_loader_is_not_dropped
7. The global batch is right for any loader and for an accumulation that changes, or the loader is named.
   tests/unit/callbacks/test_lr_loaders.py::test_a_batch_size_is_read_off_any_loader_that_has_one
   tests/unit/callbacks/test_lr_loaders.py::test_a_batch_size_that_cannot_be_read_is_asked_for_with_the_loaders_found
   tests/unit/callbacks/test_lr_scaling.py::test_accumulation_that_changes_is_followed
8. Only devices that see different data count.
   tests/unit/callbacks/test_lr_scaling.py::test_tensor_parallel_devices_do_not_count
   tests/distributed/test_scaling_ranks.py::test_the_rate_counts_the_devices_that_see_different_data
9. Adam's moments follow the square-root law exactly, and are refused beyond it.
   tests/unit/functional/test_scaling.py::test_moments_follow_the_square_root_law
   tests/unit/callbacks/test_lr_scaling.py::test_moments_follow_the_batch_and_are_told
   tests/unit/callbacks/test_lr_scaling.py::test_moments_beyond_their_law_are_refused_with_nothing_changed
10. The last window of an epoch, with one batch of four, is told to count a quarter, which it does.
   tests/unit/callbacks/test_loss_reduction.py::test_a_partial_window_is_told_with_its_share
   tests/unit/callbacks/test_loss_reduction.py::test_the_share_of_a_partial_window_is_what_lightning_makes_of_it
11. The checkpoint of a run with any shipped callback loads with `weights_only=True`.
   tests/cli/test_acceptance_checkpoints.py::test_with_every_callback_that_goes_with_the_others
   tests/cli/test_acceptance_checkpoints.py::test_with_each_callback_that_takes_the_step
12. wandb has one run per job, with its group, type, config, summary and exit code, read back from its file.
   tests/cli/test_sweep.py::test_wandb_has_one_run_per_job_with_group_name_tags_and_exit_code
   tests/cli/test_sweep.py::test_wandb_config_has_the_flat_block
   tests/cli/test_sweep.py::test_wandb_summary_and_history_hold_the_numbers
   tests/cli/test_isolation.py::test_each_job_has_a_wandb_run_of_its_own
13. A typo, in a file or on the command line, is refused before any job starts.
   tests/cli/test_acceptance_validation.py::test_a_typo_is_answered_with_what_was_meant
   tests/cli/test_typos.py::test_sweep_with_one_bad_config_starts_no_job
   tests/cli/test_typos.py::test_typo_names_what_was_meant_and_nothing_is_trained
14. The wheel works in a clean environment, and its callbacks compose in an application of others.
   tests/cli/test_wheel.py::test_console_script_of_the_wheel_runs_a_sweep
   tests/cli/test_wheel.py::test_configs_compose_in_an_application_of_others
15. No secret of the environment is in any file of a run or a sweep.
   tests/cli/test_secrets.py::test_a_secret_of_the_environment_is_in_no_file
16. All works with `lightning` alone installed, and with `pytorch_lightning` alone.
   tests/cli/test_acceptance_lightning.py::test_a_sweep_with_one_of_the_packages_alone
   tests/unit/test_door.py::test_the_package_imported_first_wins
"""

import ast
import re

import pytest

from tests.cli.commands import ROOT

CHECKS = {
    int(number): re.findall(r"(tests/\S+\.py)::(\w+)", text)
    for number, text in re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", __doc__, re.MULTILINE | re.DOTALL)
}


def test_all_sixteen_are_listed_with_a_test_each():
    assert sorted(CHECKS) == list(range(1, 17))
    assert all(CHECKS.values())
    assert sum(map(len, CHECKS.values())) == __doc__.count("::")


@pytest.mark.parametrize("number", CHECKS)
def test_the_tests_of_a_check_are_there(number):
    for path, name in CHECKS[number]:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"
