"""Speed, MFU and counts of what went by."""

import numpy as np
import torch

from sgtm.train.meter import Meter, known_peak

_GPUS = {
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA L40": 181.0,
    "Orion": None,
}


def meter(monkeypatch, **settings):
    now = [100.0]
    monkeypatch.setattr("sgtm.train.meter.time.monotonic", lambda: now[0])
    return Meter(torch.nn.Linear(9, 10), ("default", "retain", "forget"), **settings), now  # 100 parameters


def test_mfu_is_six_flops_a_parameter_and_token_of_what_all_devices_can_do(monkeypatch):
    found, now = meter(monkeypatch, num_devices=2, peak_tflops=3e-9)  # 3,000 FLOP/s each
    now[0] += 4
    reading = found.read(20)
    assert (reading.tokens, reading.seconds, reading.mfu) == (20, 4.0, 600 * 5 / 6000)
    assert reading.as_logs()["tokens_per_second"] == 5.0
    assert reading.as_logs()["mfu"] == 0.5


def test_a_reading_begins_anew(monkeypatch):
    found, now = meter(monkeypatch)
    found.count(np.array([0, 2]))
    now[0] += 1
    assert found.read(10).examples == {"default": 1, "retain": 0, "forget": 1}
    now[0] += 1
    reading = found.read(30)
    assert (reading.tokens, reading.seconds, reading.examples) == (20, 1.0, {})


def test_positions_count_where_they_have_modes(monkeypatch):
    found, _ = meter(monkeypatch, total=lambda counts: 2 * counts)
    found.count(np.array([[0, 1, 1], [2, 2, 2]]))
    assert found.read(1).examples == {"default": 2, "retain": 4, "forget": 6}


def test_pauses_do_not_count(monkeypatch):
    found, now = meter(monkeypatch)
    now[0] += 1
    with found.paused():
        now[0] += 50
    assert found.read(1).seconds == 1.0


def test_what_is_not_known_is_not_told(monkeypatch):
    found, _ = meter(monkeypatch)
    reading = found.read(0)
    assert reading.mfu is None or torch.cuda.is_available()
    assert reading.as_logs()["tokens_per_second"] == 0.0  # no time has gone by


def test_a_gpu_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in _GPUS.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert known_peak() == peak
