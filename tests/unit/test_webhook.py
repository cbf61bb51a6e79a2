"""How a message is signed, and what an attempt to post it comes to, against receivers on real sockets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from billing import webhook
from billing.webhook import Outcome, Webhook, signature
from metering.alerts import Kind, Message
from metering.rows import RowKey
from tests.builders import NOW

KEY = bytes(range(32))
BODY = '{"é": 1}'.encode()
MESSAGE = Message("alert_1_crossed", Kind.CROSSED, RowKey("TENANT#t", "ALERT#x"), BODY, NOW, NOW)
Script = Callable[[socket.socket], None]


@contextmanager
def receiver(*scripts: Script) -> Iterator[int]:
    """Give the port of a receiver that does one script for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for script in scripts:
                with suppress(OSError), server.accept()[0] as connection:
                    script(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


def request_of(connection: socket.socket) -> bytes:
    """Read a request, whose body is BODY."""
    found = b""
    while not found.endswith(b"\r\n\r\n" + BODY):
        found += connection.recv(65536) or pytest.fail(f"it ended early: {found!r}")
    return found


def answers(text: str, seen: list[bytes] | None = None) -> Script:
    def script(connection: socket.socket) -> None:
        request = request_of(connection)
        if seen is not None:
            seen.append(request)
        connection.sendall(text.encode())

    return script


def post(port: int, path: str = "/hook?a=b") -> Outcome:
    return Webhook(f"http://127.0.0.1:{port}{path}", KEY).post(MESSAGE, now=NOW)


def test_the_signature_is_that_of_the_specifications_own_example() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_post_is_whole_and_signed() -> None:
    seen: list[bytes] = []
    with receiver(answers("HTTP/1.1 204 No Content\r\n\r\n", seen)) as port:
        assert post(port) is Outcome.POSTED
    head, _, body = seen[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert (first, body) == ("POST /hook?a=b HTTP/1.1", BODY)
    signed = b"alert_1_crossed." + str(int(NOW.timestamp())).encode() + b"." + BODY
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("alert_1_crossed", str(int(NOW.timestamp())))
    assert (headers["content-type"], headers["content-length"]) == ("application/json", str(len(BODY)))
    assert headers["host"] == f"127.0.0.1:{port}"


def test_a_later_attempt_has_its_own_time_and_the_same_id() -> None:
    seen: list[bytes] = []
    with receiver(*[answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", seen)] * 2) as port:
        for moment in (NOW, datetime(2024, 2, 1, tzinfo=UTC)):
            Webhook(f"http://127.0.0.1:{port}/", KEY).post(MESSAGE, now=moment)
    assert all(b"webhook-id: alert_1_crossed\r\n" in request for request in seen)
    assert b"webhook-timestamp: 1706745600\r\n" in seen[1]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("200 OK", Outcome.POSTED),
        ("299 Fine", Outcome.POSTED),
        ("302 Found\r\nLocation: /elsewhere", Outcome.FAILED),
        ("400 Bad Request", Outcome.FAILED),
        ("404 Not Found", Outcome.FAILED),
        ("410 Gone", Outcome.GONE),
        ("429 Too Many Requests", Outcome.FAILED),
        ("500 Internal Server Error", Outcome.FAILED),
        ("abc", Outcome.FAILED),
    ],
)
def test_a_2xx_alone_is_good_and_nothing_is_followed(answer: str, outcome: Outcome) -> None:
    with receiver(answers(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n")) as port:
        assert post(port) is outcome


def endless(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    with receiver(endless) as port:
        assert post(port) is Outcome.POSTED


def resetting(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no end, a reset


def test_what_becomes_of_an_answer_after_its_status_changes_nothing() -> None:
    with receiver(resetting) as port:
        assert post(port) is Outcome.POSTED


def silent(connection: socket.socket) -> None:
    request_of(connection)
    assert connection.recv(1) == b""


def dripping(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 2")
    while True:  # each wait of the client's is short
        connection.sendall(b"X")
        time.sleep(0.05)


def closing(connection: socket.socket) -> None:
    request_of(connection)


@pytest.mark.parametrize("script", [silent, dripping, closing])
def test_an_attempt_ends_whatever_the_receiver_does(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "POST_S", 0.5)
    begun_s = time.monotonic()
    with receiver(script) as port:
        assert post(port) is Outcome.FAILED
    assert time.monotonic() - begun_s < 5


def test_nobody_there_is_a_failed_attempt_and_the_log_keeps_the_path_to_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert post(port, "/token-abc") is Outcome.FAILED
    assert "alert_1_crossed was not posted to 127.0.0.1: " in caplog.text
    assert "token-abc" not in caplog.text


def test_a_host_that_is_no_name_is_a_failed_attempt() -> None:
    assert Webhook(f"http://{'a' * 64}.example/", KEY).post(MESSAGE, now=NOW) is Outcome.FAILED


def test_a_receiver_whose_certificate_nobody_vouches_for_is_not_told() -> None:
    def plain(connection: socket.socket) -> None:
        assert connection.recv(65536)[:1] == b"\x16"  # a TLS handshake
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with receiver(plain) as port:
        assert Webhook(f"https://127.0.0.1:{port}/", KEY).post(MESSAGE, now=NOW) is Outcome.FAILED


def certificate(folder: Path, address: str) -> Path:
    """Make a certificate for an IP address, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "receiver.pem"
    file.write_bytes(made.public_bytes(pem) + plain)
    return file


@pytest.mark.parametrize(("address", "outcome"), [("127.0.0.1", Outcome.POSTED), ("127.0.0.2", Outcome.FAILED)])
def test_a_receiver_is_told_by_tls_when_its_certificate_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, outcome: Outcome
) -> None:
    file = certificate(tmp_path, address)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))  # OpenSSL's own variable: whom this machine trusts
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        with server.wrap_socket(connection, server_side=True) as protected:
            answers("HTTP/1.1 204 No Content\r\n\r\n", seen)(protected)

    connect = socket.create_connection
    with receiver(script, script) as port:
        monkeypatch.setattr(socket, "create_connection", lambda address, timeout: connect((address[0], port), timeout))
        for url in (f"https://127.0.0.1:{port}/", "https://127.0.0.1/"):
            assert Webhook(url, KEY).post(MESSAGE, now=NOW) is outcome
    hosts = [line for request in seen for line in request.splitlines() if line.startswith(b"Host: ")]
    told = [b"Host: 127.0.0.1:%d" % port, b"Host: 127.0.0.1"]  # the port of https is not said
    assert hosts == (told if outcome is Outcome.POSTED else [])
