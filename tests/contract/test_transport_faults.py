"""Every exception that the HTTP libraries can raise has a place in the port."""

from __future__ import annotations

import inspect
from http import client as http_client
from types import ModuleType

import pyreqwest.exceptions
import pytest
import requests.exceptions
import urllib3.exceptions

from callmill.workers.transports import pyreqwest_faults, requests_faults
from callmill.workers.transports.port import FaultKind


def exceptions_of(*modules: ModuleType) -> list[type[Exception]]:
    """Collect the exception classes that the modules define."""
    found = {
        member
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and not issubclass(member, Warning) and member.__module__ == module.__name__
    }
    return sorted(found, key=lambda member: member.__qualname__)


def bare(cls: type[Exception]) -> Exception:
    """An instance without running a constructor, each of which wants something else."""
    error = cls.__new__(cls)
    error.args = ("why",)
    parts = {"message": "why", "details": {"causes": None}, "partial": 0, "expected": 1, "length": b"zz"}
    for attribute, value in parts.items():
        setattr(error, attribute, value)
    return error


@pytest.mark.parametrize("cls", exceptions_of(pyreqwest.exceptions))
def test_pyreqwest_is_covered(cls: type[Exception]) -> None:
    """Each class of pyreqwest becomes a fault; time-outs become TIMEOUT whatever they say of the phase."""
    raised = pyreqwest_faults.fault_of(bare(cls))
    assert raised is not None
    assert issubclass(cls, TimeoutError) == (raised.kind is FaultKind.TIMEOUT)


@pytest.mark.parametrize("cls", exceptions_of(requests.exceptions, urllib3.exceptions, http_client))
def test_requests_is_covered(cls: type[Exception]) -> None:
    """Each class of requests, urllib3 and http.client becomes a fault."""
    error = bare(cls)
    if cls is http_client.IncompleteRead:
        error.__dict__["partial"] = b""
    raised = requests_faults.fault_of(error, sent=True)
    assert raised is not None


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("x"), MemoryError()])
def test_our_bugs_are_no_faults(error: Exception) -> None:
    """What no library means to raise is left alone."""
    assert pyreqwest_faults.fault_of(error) is None
    assert requests_faults.fault_of(error, sent=True) is None


def test_messages_hold_no_url() -> None:
    """A fault of pyreqwest tells the innermost cause, not the URL, whose query may hold a secret."""
    causes = [{"message": "error sending request for url (http://x/?key=secret)"}, {"message": "connection reset"}]
    error = pyreqwest.exceptions.ConnectError("connection error", {"causes": causes})
    assert "secret" not in str(pyreqwest_faults.fault_of(error))
