"""A server that speaks S3, for tests of what is kept there."""

import contextlib
import http.client
import socket
import subprocess
import sys

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

READY_SECONDS = 60


@contextlib.contextmanager
def server():
    """The address of a server in a process of its own, empty at first."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for attempt in Retrying(
            stop=stop_after_delay(READY_SECONDS),
            wait=wait_fixed(0.1),
            retry=retry_if_exception_type(OSError),
            reraise=True,
        ):
            with attempt:
                make_bucket(address, "perdure-probe")
        yield address
    finally:
        process.terminate()
        process.wait()


def make_bucket(address, name):
    """A bucket, without the client that is under test."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == http.HTTPStatus.OK
    connection.close()


def environment(address):
    """The variables by which clients find their way there."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
