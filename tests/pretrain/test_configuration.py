import pytest

from manifests.errors import Refusal
from pretrain.configuration import laid_over, objective_of, read_configuration, read_overrides


def test_values_are_laid_over_key_by_key():
    assert laid_over({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}


def test_overrides_of_the_command_line_are_nested_and_typed():
    found = read_overrides(["optimizer.lr=1e-3", "optimizer.name=adamw", "seed=2", "data=[a, b]", "uids=null", "objective.projector=true"])
    assert found == {"optimizer": {"lr": 0.001, "name": "adamw"}, "seed": 2, "data": ["a", "b"], "uids": None, "objective": {"projector": True}}


@pytest.mark.parametrize("setting", ["seed", "=3", "a..b=3", "seed=[1"])
def test_an_override_that_sets_nothing_is_refused(setting):
    with pytest.raises(Refusal, match=r"--set.*\[bad-value\]"):
        read_overrides([setting])


def test_a_configuration_is_a_mapping(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- 1\n")
    with pytest.raises(Refusal, match=r"is no mapping.*\[bad-value\]"):
        read_configuration(path, {})
    with pytest.raises(Refusal, match=r"is not a file.*\[no-such-file\]"):
        read_configuration(tmp_path / "none.yaml", {})
    path.write_text("seed: 3\n")
    assert read_configuration(path, {"batch": 2}) == ({"seed": 3, "batch": 2}, str(path))


def test_an_objective_is_looked_up_with_its_defaults():
    name, make, parameters = objective_of({"name": "cross_entropy", "projector": True})
    assert (name, make.__name__, parameters) == ("cross_entropy", "cross_entropy", {"projector": True, "smoothing": 0.0})
    with pytest.raises(Refusal, match=r"None is no objective.*look, cross_entropy, simclr.*\[bad-value\]"):
        objective_of({})
