"""Which file is whose model, and that no name of a tenant reaches beyond the folder or its line."""

import os
from pathlib import Path

import pytest

from streams.graph_scores.model_folder import ModelFolder, model_files
from tests.graph_scores import put_model


def test_a_lanes_own_file_goes_before_its_tenants(tmp_path: Path) -> None:
    models = ModelFolder(tmp_path)
    put_model(tmp_path, "acme")
    shared = models.look("acme", "default").model
    put_model(tmp_path, "acme", lane="replay:x", name="acme.default.npz", seed=9)
    own = models.look("acme", "default").model
    assert shared is not None and own is not None and own.version != shared.version
    assert models.look("acme", "cloud").model is None, "a tenant's model is of the lane it was trained on"


def test_a_tenant_with_a_dot_is_not_taken_for_a_lane(tmp_path: Path) -> None:
    put_model(tmp_path, "acme.eu")
    models = ModelFolder(tmp_path)
    assert models.look("acme.eu", "default").model is not None
    found = models.look("acme", "eu")
    assert found.model is None and found.is_refused and "was trained on tenant 'acme.eu'" in found.problem
    put_model(tmp_path, "acme", lane="eu")
    assert models.look("acme", "eu").model is not None, "its tenant's file is still looked at"


@pytest.mark.parametrize("tenant", ["../acme", "/etc/passwd", "..", "a/b", "a\0b", "x" * 5_000, "a\nb\x1b[2J", ""])
def test_any_name_is_a_name_in_the_folder_and_its_problem_one_line(tmp_path: Path, tenant: str) -> None:
    folder = tmp_path / "models"
    put_model(folder, "acme")
    for file in model_files(folder, tenant, "../../lane"):
        assert file.parent == folder and os.path.normpath(file) == str(file)
    found = ModelFolder(folder).look(tenant, "default")
    assert found.model is None and found.problem.isprintable()


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put_model(tmp_path, "acme")
    models = ModelFolder(tmp_path)
    first = models.look("acme", "default").model
    assert models.look("acme", "default").model is first
    put_model(tmp_path, "acme", seed=8)
    second = models.look("acme", "default").model
    assert first is not None and second is not None and first.version != second.version
    file.unlink()
    assert models.look("acme", "default").model is None
