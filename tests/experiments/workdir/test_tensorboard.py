import math
import struct
import sys

import pytest

from experiments.network.curves import CURVE, EPOCH
from experiments.runner import carry_out
from experiments.workdir.journal import read_journal
from experiments.workdir.record_fields import Kind
from experiments.workdir.tensorboard import followed

SCHEMA = {
    "epoch": EPOCH,
    "tuned": Kind({"layer": str, "share": float, "run": int}, {"curve": (CURVE, None)}),
}


def epoch(number, **figures):
    rest = {"train_loss": 2.5 / number, "validation_loss": 1.0, **figures}
    return {"kind": "epoch", "network": 1, "epoch": number, "learning_rate": 0.125, **rest}


TUNED = {"kind": "tuned", "layer": "a 1/b", "share": 0.5, "run": 3}
CURVES = {"start": 4.0, "train_loss": [3.0, 2.0], "validation_loss": [3.5, math.nan]}


def scalars(folder):
    """Every point of the event files in a folder as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            # Length, its checksum, an event, its checksum.
            (size,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
            if event.session_log.status == event.session_log.START:
                found = [point for point in found if point[1] < event.step]
            found += [(one.tag, event.step, one.simple_value) for one in event.summary.value]
    return sorted(found, key=str)


def test_event_files_hold_every_epoch_once_however_often_a_run_begins(tmp_path):
    pytest.importorskip("tensorboardX")
    path = tmp_path / "metrics.jsonl"
    with followed(read_journal(path, SCHEMA), tmp_path) as journal:
        journal.append([epoch(1, validation_accuracy=0.5)])
        journal.append([epoch(2), {**TUNED, "curve": CURVES}])
        # Without a curve, as earlier versions recorded it.
        journal.append([{**TUNED, "run": 4}])
    with followed(read_journal(path, SCHEMA), tmp_path) as journal:
        journal.again().append([epoch(2), epoch(3)])
    own = "training/network-1"
    expected = [(f"{own}/train_loss", n, pytest.approx(2.5 / n)) for n in (1, 2, 3)]
    expected += [(f"{own}/{name}", n, value) for n in (1, 2, 3) for name, value in (
        ("validation_loss", 1.0), ("learning_rate", 0.125))]  # fmt: skip
    expected.append((f"{own}/validation_accuracy", 1, 0.5))
    own = "tuned/a_1/b/0.5/run-3"
    expected += [(f"{own}/train_loss", n, value) for n, value in ((1, 3.0), (2, 2.0))]
    losses = enumerate((4.0, 3.5, math.nan))
    expected += [(f"{own}/validation_loss", n, pytest.approx(v, nan_ok=True)) for n, v in losses]
    found = scalars(tmp_path / "tensorboard")
    assert len(found) == len(expected)
    for point in expected:
        assert point in found


def test_what_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with (
        pytest.raises(ImportError, match="needs tensorboardX: install the extra 'tensorboard'"),
        followed(read_journal(tmp_path / "none" / "metrics.jsonl", SCHEMA), tmp_path),
    ):
        pass
    with pytest.raises(ValueError, match="the report alone writes no event files"):
        carry_out({"experiment": "report"}, tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())
