"""Jobs and devices: who starts when, with which GPUs and how many threads; the GPUs are made up."""

import pytest
from omegaconf import OmegaConf

from lbtrain.app.sweep.needs import Machine, Need, gpu_names, need
from lbtrain.app.sweep.slots import Lease, Slots, at_a_time, mask, threads

FOUR = Machine(16, ("0", "1", "2", "3"))


def gpus(count, *pinned):
    return Need("gpu", count, count, pinned)


def config(**trainer):
    return OmegaConf.create({"trainer": trainer})


def starts(slots, *needs):
    return {position: lease.devices for position, lease in slots.fill(needs)}


def test_a_job_starts_as_soon_as_enough_devices_are_free():
    slots = Slots(FOUR)
    first = slots.fill([gpus(1), gpus(2), gpus(2), gpus(1)])
    assert {n: lease.devices for n, lease in first} == {0: (0,), 1: (1, 2)}
    waiting = [gpus(2), gpus(1)]
    assert starts(slots, *waiting) == {}
    slots.give_back(first[0][1])
    assert starts(slots, *waiting) == {0: (0, 3)}


def test_small_jobs_do_not_starve_a_large_one():
    slots = Slots(FOUR)
    (_, small), *_ = slots.fill([gpus(1)])
    waiting = [gpus(4), gpus(1), gpus(1)]
    assert starts(slots, *waiting) == {}  # three GPUs are idle, and kept for the one that is next
    slots.give_back(small)
    assert starts(slots, *waiting) == {0: (0, 1, 2, 3)}


def test_a_job_that_waits_for_gpus_does_not_hold_up_one_that_needs_cores():
    slots = Slots(Machine(2, ("0",)))
    assert starts(slots, gpus(1), gpus(1), Need("cpu", 1)) == {0: (0,), 2: (0,)}


def test_jobs_that_share_devices_are_spread_over_all_of_them():
    slots = Slots(Machine(8, ("0", "1")), jobs_per_device=2)
    assert starts(slots, *[gpus(1)] * 5) == {0: (0,), 1: (1,), 2: (0,), 3: (1,)}


def test_a_job_of_two_devices_takes_a_place_on_each():
    slots = Slots(Machine(8, ("0", "1")), jobs_per_device=2)
    assert starts(slots, gpus(2), gpus(2), gpus(2)) == {0: (0, 1), 1: (0, 1)}


def test_pinned_devices_are_waited_for_and_others_stay_free():
    slots = Slots(FOUR)
    assert starts(slots, gpus(1, 2), gpus(1, 2), gpus(1, 0), gpus(1)) == {0: (2,), 2: (0,), 3: (1,)}


def test_slots_are_an_upper_bound_over_all_kinds():
    slots = Slots(FOUR, limit=2)
    assert starts(slots, gpus(1), Need("cpu", 1), gpus(1)) == {0: (0,), 1: (0,)}


def test_what_is_given_back_can_be_taken_again_for_ever():
    slots = Slots(Machine(2), limit=1)
    for _ in range(5):
        ((position, lease),) = slots.fill([Need("cpu", 2)])
        assert position == 0
        slots.give_back(lease)


@pytest.mark.parametrize(
    ("needs", "machine", "shared", "limit", "expected"),
    [
        ([Need("cpu", 1)] * 20, Machine(8), 1, 16, 8),
        ([Need("cpu", 2)] * 20, Machine(8), 1, 16, 4),
        ([Need("cpu", 4), Need("cpu", 1), Need("cpu", 1)], Machine(4), 1, None, 2),
        ([Need("cpu", 1)] * 40, Machine(64), 1, 16, 16),
        ([gpus(1)] * 20, FOUR, 3, None, 12),
        ([gpus(1)] * 20, FOUR, 3, 5, 5),
        ([gpus(1)] * 3, FOUR, 1, None, 3),
        ([Need("other", 1)] * 3, FOUR, 1, None, 1),
    ],
)
def test_jobs_at_a_time(needs, machine, shared, limit, expected):
    assert at_a_time(needs, Slots(machine, shared, limit)) == expected


@pytest.mark.parametrize(
    ("cores", "together", "processes", "expected"), [(8, 8, 1, 1), (8, 1, 1, 8), (8, 2, 2, 2), (2, 4, 3, 1)]
)
def test_threads_of_all_processes_together_are_no_more_than_cores(cores, together, processes, expected):
    assert threads(cores, together, processes) == expected


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (2, None, ("0", "1")),
        (2, "3, 1", ("3", "1")),
        (2, "GPU-8a,GPU-5c", ("GPU-8a", "GPU-5c")),
        (1, "5,-1,2", ("5",)),  # CUDA stops at what it does not know
        (0, "", ()),
    ],
)
def test_gpus_have_the_names_that_this_process_was_given(count, visible, expected):
    assert gpu_names(count, visible) == expected


@pytest.mark.parametrize(
    ("lease", "names", "pinned", "expected"),
    [
        (Lease("gpu", (0, 2)), ("7", "5", "GPU-3"), False, "7,GPU-3"),
        (Lease("gpu", (2,)), ("7", "5", "3"), True, None),  # its config counts among all of them
        (Lease("cpu", (0,)), ("7",), False, None),
        (Lease("gpu", (0,)), (None,), False, None),
    ],
)
def test_a_job_sees_the_gpus_of_its_slot_alone(lease, names, pinned, expected):
    assert mask(lease, Machine(4, names), pinned) == expected


@pytest.mark.parametrize(
    ("trainer", "per_job", "expected"),
    [
        ({"accelerator": "cpu", "devices": 1}, None, Need("cpu", 1, 1)),
        ({"accelerator": "cpu", "devices": 2}, None, Need("cpu", 2, 2)),
        ({"accelerator": "cpu", "devices": 99}, None, Need("cpu", 16, 99)),  # a rehearsal
        ({"accelerator": "cpu", "devices": "auto"}, None, Need("cpu", 1, 1)),
        ({"accelerator": "cpu", "devices": 1}, 8, Need("cpu", 8, 1)),
        ({"accelerator": "gpu", "devices": -1}, None, Need("gpu", 4, 4)),
        ({"accelerator": "gpu", "devices": "auto"}, 2, Need("gpu", 2, 2)),
        ({"accelerator": "cuda", "devices": 1}, 2, Need("gpu", 2, 1)),
        ({"accelerator": "gpu", "devices": [1, 3]}, None, Need("gpu", 2, 2, (1, 3))),
        ({"accelerator": "gpu", "devices": "0,2"}, None, Need("gpu", 2, 2, (0, 2))),
        ({"accelerator": "gpu", "devices": "3,"}, None, Need("gpu", 1, 1, (3,))),
        ({"accelerator": "auto", "devices": "2"}, None, Need("gpu", 2, 2)),
        ({"accelerator": "tpu", "devices": 8}, None, Need("other", 1, 1)),
        ({}, None, Need("gpu", 4, 4)),
    ],
)
def test_a_job_takes_what_its_trainer_asks_for(trainer, per_job, expected):
    assert need(config(**trainer), FOUR, per_job) == expected


def test_a_config_without_a_trainer_takes_what_lightning_would():
    assert need(OmegaConf.create({}), Machine(8), None) == Need("cpu", 1, 1)


@pytest.mark.parametrize(
    ("trainer", "machine", "per_job", "message"),
    [
        ({"accelerator": "gpu", "devices": 1}, Machine(8), None, "torch sees no GPU here; use trainer=cpu"),
        ({"accelerator": "gpu", "devices": 5}, FOUR, None, "among the 4 GPUs of this machine, got 5; ask for fewer"),
        ({"accelerator": "gpu", "devices": [0, 4]}, FOUR, None, r"among the 4 GPUs of this machine, got \[0, 4\]"),
        ({"accelerator": "gpu", "devices": 1}, Machine(8, ("0",)), 2, "at most the 1 GPU of this machine, got 2; give"),
        ({"accelerator": "cpu", "devices": 1}, Machine(2), 3, "at most the 2 CPU cores of this machine, got 3; give"),
        ({"accelerator": "gpu", "devices": 2}, FOUR, 1, "at least trainer.devices, got 1 for trainer.devices=2; give"),
        ({"accelerator": "cpu", "devices": 0}, FOUR, None, "trainer.devices must be at least 1, got 0; give 1"),
        ({"accelerator": "gpu", "devices": []}, FOUR, None, "trainer.devices must be at least 1"),
        ({"accelerator": "cpu", "devices": "two"}, FOUR, None, "must be a number or a list of numbers, got 'two'; giv"),
        ({"accelerator": "cpu", "num_nodes": 2}, FOUR, None, "num_nodes must be 1 .* got 2; use hydra/launcher=submit"),
    ],
)
def test_more_than_the_machine_has_is_refused_with_a_way_out(trainer, machine, per_job, message):
    with pytest.raises(ValueError, match=message):
        need(config(**trainer), machine, per_job)
