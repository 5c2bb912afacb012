"""A checkpoint comes back as it was; another version, or damage, is refused in one line."""

import io

import numpy as np
import pytest

from models.gnn.checkpoint import FORMAT_VERSION, Checkpoint, decode, encode
from models.gnn.features import FEATURE_VERSION
from models.gnn.inference import shapes
from schemas.errors import ConfigurationError
from tests.gnn_windows import made_checkpoint


def test_a_checkpoint_comes_back_as_it_was() -> None:
    made = made_checkpoint()
    read = decode(encode(made))
    assert read.card == made.card
    assert all(np.array_equal(read.weights[name], made.weights[name]) for name in shapes())
    for name in ("link", "signals", "statistical"):
        assert np.array_equal(getattr(read.calibration, name), getattr(made.calibration, name))
    assert read.calibration.new_share == made.calibration.new_share


@pytest.mark.parametrize(
    "changes", [{"format_version": FORMAT_VERSION + 1}, {"feature_version": FEATURE_VERSION + 1}, {"format_version": 0}]
)
def test_another_version_is_refused_by_number(changes: dict[str, int]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"the model is of format \d+ and features \d+.*drift train"
    ) as refused:
        decode(encode(made_checkpoint(**changes)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [0, 10, 1_000, -30])
def test_a_cut_file_is_refused(cut: int) -> None:
    with pytest.raises(ConfigurationError, match="drift train"):
        decode(encode(made_checkpoint())[:cut])


def test_pickled_objects_are_never_loaded() -> None:
    file = io.BytesIO()
    np.savez(file, card=np.array([{"format_version": 1}], dtype=object))
    with pytest.raises(ConfigurationError, match="drift train"):
        decode(file.getvalue())


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_damaged_weights_are_refused(damage: str) -> None:
    made = made_checkpoint()
    weights = dict(made.weights)
    if damage == "missing":
        del weights["self_0"]
    elif damage == "shape":
        weights["self_0"] = weights["self_0"][1:]
    else:
        weights["self_0"] = weights["self_0"] * np.float32("nan")
    with pytest.raises(ConfigurationError, match=r"damaged \(.*self_0"):
        decode(encode(Checkpoint(made.card, weights, made.calibration)))


def test_an_archive_that_unpacks_to_too_much_is_refused() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, card=np.zeros(6 << 20, dtype=np.uint8))
    with pytest.raises(ConfigurationError, match="too large unpacked"):
        decode(file.getvalue())
