import inspect

import pytest

from manifests.signature import first_sentence, load, parameters
from pretrain.tables import OBJECTIVES, TASKS, page

ROWS = [f"objectives.{n}" for n in OBJECTIVES] + [f"transfer.{n}" for n in TASKS]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_a_function_whose_page_names_every_parameter(name):
    function = load(name, "pretrain")
    shown = page(name)
    assert first_sentence(name, "pretrain").endswith((".", "else 0."))
    assert inspect.cleandoc(function.__doc__) in shown
    for parameter in parameters(function):
        assert f"  {parameter}: " in shown
        assert any(line.split(",")[0].split(" ")[0] == parameter for line in inspect.cleandoc(function.__doc__).splitlines()), parameter


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_says_what_the_module_needs(name):
    module = __import__(f"pretrain.objectives.{name}", fromlist=["x"])
    kinds = [k for k in vars(module).values() if inspect.isclass(k) and k.__module__ == module.__name__ and hasattr(k, "needs_labels")]
    assert [k.needs_labels for k in kinds] == [OBJECTIVES[name].needs_labels]
    assert callable(getattr(module, f"{name}_loss"))


def test_a_page_that_is_none_is_our_bug():
    with pytest.raises(LookupError):
        page("objectives.bank")
