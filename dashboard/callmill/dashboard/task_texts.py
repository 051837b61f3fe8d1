"""How chunk tasks read on Flower's pages."""

from __future__ import annotations

import ast
from typing import Any

_RUN_CHUNK = "callmill.run_chunk"

COLUMNS = "args,state,result,runtime,received,worker,uuid"
"""Columns of the tasks page: what a chunk is and what came of it stand first, its link to the details last."""


def readable(task: Any) -> Any:
    """Return Flower's copy of a task with the result of a chunk as the sentence it is, without Python's quotes."""
    if task.name == _RUN_CHUNK and isinstance(task.result, str) and task.result[:1] in {"'", '"'}:
        task.result = _unquoted(task.result)
    return task


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):  # cut off by Celery because of its length
        return text
