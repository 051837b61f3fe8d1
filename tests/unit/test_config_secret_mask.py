"""SecretMask: secrets are found however a server spells them, and nothing else is touched."""

from __future__ import annotations

import html
import json
import re
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.config.secret_mask import SecretMask, is_unmistakable

SECRETS = [
    "hunter2hunter2",
    "sk-live_AbC+dEf/09==",
    "p@ss/w0rd 'x'",
    'ü+ß&"\\a=<>b',
    "-!?-:;-%-",
    "a1-b2-c3-d4",
    "7pK8Q~xYz.ab-3_q",
    "ends+in9\\",
]


def php(text: str) -> str:
    """Write a string as PHP's JSON does."""
    return json.dumps(text).replace("/", "\\/")


def escaped(text: str) -> str:
    """Write a string as those JSON encoders do that escape more than they must."""
    return "".join(one if re.match(r"[\w.~-]", one, re.ASCII) else f"\\u{ord(one):04X}" for one in text)


def percent(character: str) -> str:
    """Write a character as percent-encoded bytes."""
    return "".join(f"%{byte:02X}" for byte in character.encode())


SPELLINGS = {
    "plain": str,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON of PHP": php,
    "JSON, escaped": escaped,
    "JSON in JSON": lambda text: json.dumps(json.dumps({"url": f"/x?key={text}"})),
    "Python": repr,
    "URL": lambda text: quote(text, safe=""),
    "path": quote,
    "form": quote_plus,
    "URL in small letters": lambda text: quote(text, safe="").replace("%2B", "%2b").replace("%2F", "%2f"),
    "form of browsers": lambda text: quote_plus(text).replace("~", "%7E"),
    "URL of cautious encoders": lambda text: "".join(one if one.isalnum() else percent(one) for one in text),
    "URL in URL": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "URL in HTML": lambda text: html.escape(f"?a=1&key={quote(text, safe='')}"),
    "HTML in numbers": lambda text: re.sub(r"[^\w.~-]", lambda match: f"&#x{ord(match[0]):x};", text, flags=re.ASCII),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_every_spelling_is_found(secret, spell):
    """Whatever encoder wrote the secret, nothing of it is left, in texts and in bytes."""
    mask, written = SecretMask([secret]), spell(secret)
    for around in ("", "before ", "key="):
        text = mask.text(f"{around}{written} after")
        assert "***" in text
        assert mask.body(f"{around}{written} after".encode()) == text.encode()
        assert text.startswith(around)
        assert text.endswith(" after")
        assert written not in text


@given(
    secret=st.text(min_size=1, max_size=30).filter(str.isprintable),
    before=st.text(max_size=10),
    after=st.text(max_size=10),
)
def test_any_secret_is_found(secret, before, after):
    """Any secret is replaced, plain and in JSON, and what stands around it stays."""
    mask = SecretMask([secret])
    for text in (before + secret + after, before + json.dumps(secret) + after):
        assert secret not in mask.text(text) or secret in "***"
        assert mask.body(text.encode("utf-8", "surrogatepass")) != text.encode("utf-8", "surrogatepass")


def test_json_stays_json():
    """An answer whose values hold the secret is as good JSON afterwards as before."""
    secret = 'to"ken/with+all'
    answer = {"headers": {"X-Key": secret}, "url": f"https://a.example/?k={quote(secret, safe='')}", "n": 1}
    assert json.loads(SecretMask([secret]).body(json.dumps(answer).encode())) == {
        "headers": {"X-Key": "***"},
        "url": "https://a.example/?k=***",
        "n": 1,
    }


def test_nothing_else_changes():
    """What holds no secret, or only a part of one, is returned as it is."""
    mask = SecretMask(["sk-live_abcdef123456"])
    for body in (b"", b"abcdef123456", b"sk-live_abcdef12345", bytes(range(256)) * 10):
        assert mask.body(body) is body
    assert SecretMask([]).body(b"x") == b"x"
    assert SecretMask([""]).text("x") == "x"


def test_a_secret_that_begins_another_leaves_no_end_of_it():
    """Of two secrets the longer one is found first, whatever their order."""
    for secrets in (["abcdefgh", "abcdefgh-tail"], ["abcdefgh-tail", "abcdefgh"]):
        assert SecretMask(secrets).text("abcdefgh-tail, abcdefgh") == "***, ***"


@pytest.mark.parametrize(
    ("secret", "unmistakable"),
    [
        ("s3cr3t!", False),
        ("password", False),
        ("12345678", False),
        ("s3cr3t!!", True),
        ("correcthorsebattery", True),
        ("1234567890123456", True),
    ],
)
def test_words_and_numbers_are_no_secrets_to_look_for(secret, unmistakable):
    """What may stand in any answer as a word or a number is not replaced there."""
    assert is_unmistakable(secret) is unmistakable


@pytest.mark.parametrize("filler", ["\\", "%25", "&amp;amp;", "&#000", "%", "-", "a-", "ab"])
def test_no_answer_takes_long(filler):
    """An answer made to look like the beginning of a secret, over and over, is searched in linear time."""
    mask = SecretMask(["-+abcdef%&/"])
    body = filler.encode() * (1_000_000 // len(filler)) + b"abcdef"
    began_s = time.process_time()
    assert mask.body(body) is not None
    assert time.process_time() - began_s < 2


@pytest.mark.parametrize(
    "inside", [str, '"{}"'.format, lambda text: json.dumps({"b": text})], ids=["plain", "quoted", "JSON"]
)
def test_what_follows_a_secret_stays(inside):
    """A quote behind a secret that ends in a backslash stays what it was: JSON around it stays JSON."""
    secret = "ends+in9\\"
    assert json.loads(SecretMask([secret]).text(json.dumps({"a": inside(secret)}))) == {"a": inside("***")}
