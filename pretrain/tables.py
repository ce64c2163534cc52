"""Every objective and every probe, in the order of the documentation. A new one is its file, its test and a row here."""

import ast
import inspect
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """version: raised when its values change; needs_labels: whether it reads the label."""

    version: int
    needs_labels: bool


OBJECTIVES = {  # pretrain/objectives/NAME.py: function NAME, loss NAME_loss
    "look": Row(1, True),
    "cross_entropy": Row(2, True),
    "simclr": Row(1, False),
}

TASKS = {  # pretrain/transfer/NAME.py: function NAME; what a task's `probe` may say
    "knn": Row(1, True),
    "linear": Row(3, True),
}


def page(name: str) -> str:
    """The signature and docstring of "objectives.look", read with `ast`: neither torch nor the method is imported."""
    path = Path(__file__).parent / Path(*name.split(".")).with_suffix(".py")
    function = name.rsplit(".", 1)[-1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            arguments = node.args
            named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            parameters = [f"  {a.arg}: {ast.unparse(a.annotation or ast.Constant('?'))}" + (f" = {ast.unparse(d)}" if d else "") for a, d in named]
            return "\n".join([function, *parameters, "", inspect.cleandoc(ast.get_docstring(node) or "")])
    raise LookupError(name)
