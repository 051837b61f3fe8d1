"""RunState: what a run leaves beside its output, so that the same command goes on where it stopped.

Replaced as a whole, after the output is on the disk: it never claims more than the output has. A run that was cut off
goes back to it: the output is cut to the lengths here, and read on from the cursor.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct

from callmill.cli.folder_sync import sync_folder
from callmill.cli.input_file import InputIdentity
from callmill.cli.job_line import BareBodies
from callmill.cli.run_report import RunReport
from callmill.errors import InputFileError
from callmill.jobs.traffic import NORMAL, TrafficClass

_VERSION = 1
_CHECKSUM = re.compile(rb',"crc32":\d{1,10}\}$')
_CURSOR = re.compile(r"(\d{1,20}-\d{1,20}(/\d{1,9})?)?", re.ASCII)
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RunState(Struct, frozen=True, kw_only=True):
    """What is certain of a run.

    Attributes:
        batch_id: Its batch.
        api: API of the lines that name none.
        input: Its input file.
        traffic: How urgent its calls are, and on whose behalf they are made.
        errors: Absolute path of the errors file, if there is one.
        bare: How lines are sent that are bodies and nothing else; None: they are bad lines.
        cursor: After which outcome to read on; empty: from the first.
        output_bytes: Length of the output.
        errors_bytes: Length of the errors file.
        report: What came of it; None while it is not over.
        retry_up_to_ms: Jobs that failed by this Unix time in milliseconds, by Redis's clock, are to run again;
            0: none are.
        draft_bytes: Length of the draft that replaces the file with the failures; None: there is none.
    """

    version: int = _VERSION
    batch_id: str
    api: str | None
    input: InputIdentity
    errors: str | None
    traffic: TrafficClass = NORMAL
    bare: BareBodies | None = None
    cursor: str = ""
    output_bytes: int = 0
    errors_bytes: int = 0
    report: RunReport | None = None
    retry_up_to_ms: int = 0
    draft_bytes: int | None = None


class _SavedState(RunState, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A state as the file has it, with the checksum of everything before."""

    crc32: int | None = None


def state_path(output: Path) -> Path:
    """Return where the state of the run with this output is kept."""
    return output.with_name(f"{output.name}.callmill")


def load_state(path: Path) -> RunState | None:
    """Return the state that was saved; None when there is none.

    Raises:
        InputFileError: It cannot be read.
    """
    try:
        content = path.read_bytes()
        saved = msgspec.json.decode(content, type=_SavedState)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: cannot be read ({error}); start over with --fresh") from error
    state = RunState(**{name: getattr(saved, name) for name in RunState.__struct_fields__})
    if not _is_whole(content, saved.crc32) or not _is_plausible(state):
        raise InputFileError(f"{path}: was changed or is damaged; restore it, or start over with --fresh")
    if state.version != _VERSION:
        raise InputFileError(f"{path}: was written by another version of Callmill; use that one, or --fresh")
    return state


def save_state(path: Path, state: RunState) -> None:
    """Replace the state, on the disk when this returns."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        file.write(_with_checksum(msgspec.json.encode(state)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def _with_checksum(state: bytes) -> bytes:
    return state[:-1] + b',"crc32":%d}' % zlib.crc32(state)


def _is_whole(content: bytes, crc32: int | None) -> bool:
    """Say whether a state is as it was written; Callmill 0.1 wrote no checksum."""
    return crc32 is None or _with_checksum(_CHECKSUM.sub(b"}", content)) == content


def _is_plausible(state: RunState) -> bool:
    lengths = (state.output_bytes, state.errors_bytes, state.draft_bytes or 0, state.retry_up_to_ms)
    return (
        all(0 <= length < 2**63 for length in lengths)
        and _CURSOR.fullmatch(state.cursor) is not None
        and _BATCH_ID.fullmatch(state.batch_id) is not None
    )
