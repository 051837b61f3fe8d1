"""Real servers behind a worker, over both transports: the right bytes at the server, the right bytes back."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from local_nodes import LocalWorker, WorkerProcess, write_profiles
from real_limiters.nginx import NginxProcess
from real_limiters.served import MissingProgramError, ProgramProcess, ServerProcess, program, running
from transport_cases import NAMES

from callmill.config.celery import app
from callmill.producer import Client, Job, Outcome

pytestmark = pytest.mark.programs

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000") + b"\x1f\x15\xc4\x89\xff\x00\xfe"
LATIN, JAPANESE = "Größe: 30 °C", "日本語のテキスト"
ROWS = {"rows": [{"n": n, "name": "Zoë"} for n in range(500)]}
FILES = {
    "picture.png": PNG,
    "latin.txt": LATIN.encode("latin-1"),
    "japanese.txt": JAPANESE.encode("shift_jis"),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "wide.json": json.dumps(ROWS).encode("utf-16"),
    "rows.json": json.dumps(ROWS).encode(),
    "empty.json": b"",
}
NGINX = """\
root {folder}/files;
    types {{ image/png png; application/json json; }}
    location /latin.txt {{ charset ISO-8859-1; charset_types text/plain; types {{ text/plain txt; }} }}
    location /japanese.txt {{ charset Shift_JIS; charset_types text/plain; types {{ text/plain txt; }} }}
    location /compressed/ {{ gzip on; gzip_types *; gzip_min_length 1; alias {folder}/files/; }}
    location /members/ {{ gzip_static always; }}
    location /stored/ {{ dav_methods PUT DELETE MKCOL MOVE; root {folder}; }}
    location /moved {{ return 308 /rows.json; }}
    location /said {{
      default_type text/plain;
      return 200 "$request_method|$request_uri|$http_soapaction|$content_length";
    }}
"""
LIGHTTPD = """\
server.document-root = "{folder}/files"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/errors.log"
server.upload-dirs = ("{folder}")
server.modules = ("mod_cgi")
cgi.assign = (".py" => "{python}")
mimetype.assign = (
  ".png" => "image/png", ".json" => "application/json", "latin.txt" => "text/plain; charset=ISO-8859-1",
  "japanese.txt" => "text/plain; charset=Shift_JIS", "" => "application/octet-stream",
)
"""
ECHO = """\
import base64, json, os, sys, zlib, gzip
body = sys.stdin.buffer.read()
how = os.environ["QUERY_STRING"]
told = {name: value for name, value in os.environ.items() if name.startswith(("HTTP_", "REQUEST_", "CONTENT_"))}
answer = json.dumps({**told, "body": base64.b64encode(body).decode()}).encode()
if how == "deflate":
    stream = zlib.compressobj(wbits=-15)
    answer = stream.compress(answer) + stream.flush()
elif how == "x-gzip":
    answer = gzip.compress(answer[:9]) + gzip.compress(answer[9:])
elif how == "gzip,%20gzip":
    answer = gzip.compress(gzip.compress(answer))
head = f"Status: 200\\r\\nContent-Type: application/json\\r\\n"
if how in ("deflate", "x-gzip", "gzip,%20gzip", "br"):
    head += f"Content-Encoding: {how.replace('%20', ' ')}\\r\\n"
sys.stdout.buffer.write(head.encode() + b"\\r\\n" + answer)
"""


HTTPBIN = "import sys; from httpbin import app; app.run(host='127.0.0.1', port=int(sys.argv[1]), threaded=True)"


class LighttpdProcess(ServerProcess):
    """lighttpd, with a script that tells what arrived."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._program = program("lighttpd", package="lighttpd")
        places = {"folder": self.folder, "port": self.port, "python": sys.executable}
        (self.folder / "lighttpd.conf").write_text(LIGHTTPD.format(**places))

    def command(self) -> list[str]:
        """Return lighttpd's command line."""
        return [self._program, "-D", "-f", str(self.folder / "lighttpd.conf")]


def httpbin(folder: Path) -> ServerProcess:
    """Return httpbin, where somebody installed it: it brings more packages than all other tests together."""
    if find_spec("httpbin") is None:
        raise MissingProgramError("no httpbin: pip install httpbin")
    return ProgramProcess(folder, sys.executable, "-c", HTTPBIN)


def write_files(folder: Path) -> None:
    """Write what the servers serve."""
    (folder / "files/members").mkdir(parents=True)
    (folder / "stored").mkdir()
    for name, content in FILES.items():
        (folder / "files" / name).write_bytes(content)
    rows = FILES["rows.json"]
    (folder / "files/members/rows.json.gz").write_bytes(gzip.compress(rows[:1000]) + gzip.compress(rows[1000:]))
    (folder / "files/echo.py").write_text(ECHO)


@dataclass
class Site:
    """A worker with an API for each server and transport, and a client."""

    client: Client
    servers: dict[str, ServerProcess]
    missing: dict[str, str]

    def run(self, server: str, *jobs: tuple[str, str, dict[str, object]]) -> dict[str, list[Outcome]]:
        """Make calls over each transport; skip where the server is missing."""
        if server in self.missing:
            pytest.skip(self.missing[server])
        seen = {}
        for name in NAMES:
            made = [Job(method, path, api=f"{server}-{name}", **fields) for method, path, fields in jobs]  # type: ignore[arg-type]
            outcomes = self.client.submit(made).outcomes()
            seen[name] = sorted(outcomes, key=lambda outcome: outcome.index)
        return seen


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory) -> Iterator[Site]:
    """Start the servers that there are, and a worker."""
    folder = tmp_path_factory.mktemp("servers")
    servers: dict[str, ServerProcess] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        makers: dict[str, Callable[[], ServerProcess]] = {
            "nginx": lambda: NginxProcess(folder, "", NGINX),
            "lighttpd": lambda: LighttpdProcess(folder),
            "httpbin": lambda: httpbin(folder),
        }
        for name, make in makers.items():
            try:
                process = make()
                write_files(process.folder)
                servers[name] = stack.enter_context(running(process))
            except MissingProgramError as error:
                missing[name] = str(error)
        if not servers:
            pytest.skip("; ".join(missing.values()))
        profiles = {
            f"{server}-{name}": [f'base_url = "{process.url}"', f'transport = "{name}"', "retry = { attempts = 1 }"]
            for server, process in servers.items()
            for name in NAMES
        }
        apis = write_profiles(folder / "apis.toml", profiles)
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {}).start(), app)
        stack.callback(worker.teardown)
        worker.ready()
        yield Site(stack.enter_context(Client(redis_server.url)), servers, missing)


@pytest.mark.parametrize("server", ["nginx", "lighttpd"])
def test_files_come_as_they_are(site, server):
    """A picture keeps its bytes; texts are read in the charset stated; JSON with a mark, or in UTF-16, is parsed."""
    for outcomes in site.run(server, *(("GET", f"/{name}", {}) for name in FILES)).values():
        assert [(one.ok, one.body) for one in outcomes] == [(True, content) for content in FILES.values()]
        picture, latin, japanese, marked, wide, rows, empty = outcomes
        assert (picture.content_type, picture.is_text, empty.text()) == ("image/png", False, "")
        assert (latin.text(), latin.is_text, japanese.text(), japanese.is_text) == (LATIN, True, JAPANESE, True)
        assert marked.json() == wide.json() == rows.json() == ROWS


def test_nginx_compresses(site):
    """What nginx compresses itself, and a file of two members, are decoded; a part and a HEAD are what they are."""
    calls = [
        ("GET", "/compressed/rows.json", {}),
        ("GET", "/members/rows.json", {}),
        ("HEAD", "/compressed/rows.json", {}),
        ("GET", "/rows.json", {"headers": {"Range": "bytes=0-9"}}),
        ("GET", "/compressed/nothing.json", {}),
    ]
    for own, members, head, part, refused in site.run("nginx", *calls).values():
        assert own.body == members.body == FILES["rows.json"]
        assert (head.ok, head.body, head.content_encoding) == (True, b"", None)
        assert (part.status, part.body) == (206, FILES["rows.json"][:10])
        assert (refused.status, b"<title>404" in refused.body) == (404, True)


def test_nginx_stores(site):
    """Bytes that are put come back, whatever they are; what has no body says so."""
    for name, outcomes in site.run("nginx", ("PUT", "/stored/a.bin", {"data": PNG}), ("PUT", "/stored/b", {})).items():
        assert [outcome.ok for outcome in outcomes] == [True, True], name
        assert (site.servers["nginx"].folder / "stored/a.bin").read_bytes() == PNG
        assert (site.servers["nginx"].folder / "stored/b").read_bytes() == b""


def test_nginx_sees_the_request(site):
    """Method, target and headers arrive as the job has them; a redirect that keeps the method is followed."""
    target = "/said/a%20b%2Fc?d=e+f&g=%C3%A9"
    calls = [("POST", target, {"headers": {"SOAPAction": '"urn:x"'}}), ("GET", target, {}), ("POST", "/moved", {})]
    for posted, got, moved in site.run("nginx", *calls).values():
        assert posted.text() == f'POST|{target}|"urn:x"|0'
        assert got.text() == f"GET|{target}||"
        assert moved.status == 405  # a file takes no POST


def test_lighttpd_takes_what_has_no_body(site):
    """POST, PUT and PATCH without a body are not answered 411; the bytes of others arrive as they are."""
    calls = [(method, "/echo.py", {}) for method in ("POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS")]
    calls.append(("POST", "/echo.py?a=b+c&%C3%A9", {"data": PNG, "headers": {"SOAPAction": '"urn:x"'}}))
    for outcomes in site.run("lighttpd", *calls).values():
        assert [outcome.status for outcome in outcomes] == [200] * len(calls)
        told = [outcome.json() for outcome in outcomes[:5]] + [outcomes[6].json()]
        assert [one["REQUEST_METHOD"] for one in told] == ["POST", "PUT", "PATCH", "DELETE", "GET", "POST"]
        assert [one["CONTENT_LENGTH"] for one in told[:3]] == ["0"] * 3
        assert (told[5]["REQUEST_URI"], told[5]["HTTP_SOAPACTION"]) == ("/echo.py?a=b+c&%C3%A9", '"urn:x"')
        assert b64decode(told[5]["body"]) == PNG


def test_lighttpd_answers_encoded(site):
    """Raw deflate, x-gzip in two members and gzip twice are decoded; br, which nobody asked for, is kept and named."""
    calls = [("POST", f"/echo.py?{how}", {"json": ROWS}) for how in ("deflate", "x-gzip", "gzip,%20gzip", "br")]
    for outcomes in site.run("lighttpd", *calls).values():
        *decoded, kept = outcomes
        assert all(one.json()["HTTP_ACCEPT_ENCODING"] == "gzip, deflate" for one in decoded)
        assert (kept.ok, kept.content_encoding, kept.is_text, kept.body[:1]) == (True, "br", False, b"{")


def test_httpbin_mirrors(site):
    """What httpbin says that it got is what was sent; what it sends in any coding is decoded, or kept and named."""
    said = "/anything/a%20b?c=d+e"
    calls = [
        ("POST", said, {"data": PNG, "headers": {"Content-Type": "image/png"}}),
        ("PATCH", said, {}),
        ("DELETE", said, {"json": ROWS}),
        ("PUT", said, {"data": {"a": "1", "b": "é"}}),
    ]
    kinds = ("gzip", "deflate", "brotli", "image/webp", "encoding/utf8", "stream-bytes/5000?seed=1", "status/204")
    for outcomes in site.run("httpbin", *calls, *(("GET", f"/{kind}", {}) for kind in kinds)).values():
        assert all(outcome.ok for outcome in outcomes)
        posted, patched, deleted, put = (outcome.json() for outcome in outcomes[:4])
        assert b64decode(posted["data"].partition("base64,")[2]) == PNG
        assert (patched["method"], patched["data"], patched["headers"]["Content-Length"]) == ("PATCH", "", "0")
        assert (deleted["json"], put["form"], put["args"]) == (ROWS, {"a": "1", "b": "é"}, {"c": "d e"})
        gzipped, deflated, brotli, picture, text, stream, nothing = outcomes[4:]
        assert (gzipped.json()["gzipped"], deflated.json()["deflated"]) == (True, True)
        assert (brotli.content_encoding, brotli.is_text) == ("br", False)
        assert (picture.content_type, picture.body[:4], picture.is_text) == ("image/webp", b"RIFF", False)
        assert ("∮ E⋅da" in text.text(), len(stream.body), nothing.body) == (True, 5000, b"")


def test_answers_are_small_on_the_wire():
    """The files are worth compressing, or the tests above would prove little."""
    assert len(zlib.compress(FILES["rows.json"])) * 4 < len(FILES["rows.json"])
