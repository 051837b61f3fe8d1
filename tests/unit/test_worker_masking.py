"""Texts that a worker makes from what APIs and libraries say hold no credential."""

from __future__ import annotations

import pytest

from callmill.config.redaction import hide
from callmill.config.throttle_policy import ThrottlePolicy
from callmill.limits.headers import read_feedback
from callmill.workers.answer_mask import AnswerMask
from callmill.workers.throttling import ThrottleRules
from callmill.workers.transports.port import FaultKind, Response, TransportFault

SECRET = "b7Xk2Mq9Wd4/Rt"


@pytest.fixture(autouse=True)
def read() -> None:
    """The worker has read the secret."""
    hide(SECRET)


def test_faults_name_no_credential():
    """What a library says of a URL that it could not use goes into outcomes without the key in it."""
    fault = TransportFault(FaultKind.PROTOCOL, "Invalid URL 'https://a.example/?k=b7Xk2Mq9Wd4%2FRt'", sent=False)
    assert str(fault) == "Invalid URL 'https://a.example/?k=***'"


def test_reasons_of_pauses_name_no_credential():
    """A limit that the API calls after the key is told without it."""
    headers = {"ratelimit": f'"{SECRET}";r=0;t=5', "ratelimit-policy": f'"{SECRET}";q=10;w=60'}
    answer = Response(429, headers, b"")
    throttled = ThrottleRules(ThrottlePolicy()).throttling(answer, read_feedback(headers))
    assert throttled is not None
    assert throttled.reason.startswith("429 Too Many Requests: remaining 0 of ***")


def test_answer_without_the_credential_is_the_same_object():
    """An answer that holds no credential costs a search, and nothing else: it is not made anew."""
    answer = Response(200, {}, b'{"id": 1}')
    assert AnswerMask([SECRET]).answer(answer) is answer


@pytest.mark.parametrize("secret", ["password", "12345678", "s3cr3t"])
def test_words_and_numbers_stay_in_answers(secret):
    """What may be a word or a number of the answer itself is not taken out of it."""
    answer = Response(200, {}, f'{{"{secret}": "{secret}"}}'.encode())
    assert AnswerMask([secret]).answer(answer).body == answer.body
