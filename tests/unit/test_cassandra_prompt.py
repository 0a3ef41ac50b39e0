"""The connection that sends from the thread that asks: all arrives in order, and whole."""

import os
import select
import socket
import struct
import sys
import threading
from collections import deque

import pytest

pytest.importorskip("cassandra.io.libevwrapper", exc_type=ImportError)

from perdure.cassandra.prompt import PromptConnection

MESSAGES = 500
THREADS = 4
SIZES = (0, 3, 700, 4_000, 9_000)


@pytest.fixture
def restless():
    """Threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def ends():
    """Both ends of a connection whose socket takes little at a time; nobody greets on it."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.setblocking(False)
    PromptConnection.initialize_reactor()
    connection = PromptConnection.__new__(PromptConnection)
    connection.deque, connection._deque_lock = deque(), threading.Lock()
    connection._sending, connection._socket = threading.Lock(), near
    connection._socket_writable = True
    with near, far:
        yield connection, far


def message(thread, number):
    """Bytes that say how many they are, whose, and which."""
    body = bytes([thread]) * SIZES[(thread + number) % len(SIZES)]
    return struct.pack(">III", thread, number, len(body)) + body


def test_what_the_socket_takes_is_sent_at_once(ends):
    """A message has left when `push` returns, though the driver's thread did nothing."""
    connection, far = ends
    connection.push(message(0, 1))
    far.setblocking(False)
    assert far.recv(100) == message(0, 1)
    assert not connection.deque


def test_nothing_overtakes_what_the_drivers_thread_sends(ends):
    """A message that is pushed while the driver's thread has another in hand leaves after it."""
    connection, far = ends
    near, begun, go_on = connection._socket, threading.Event(), threading.Event()

    class Held:
        """The socket, on which the driver's thread is held up."""

        def send(self, data):
            if threading.current_thread() is draining:
                begun.set()
                go_on.wait(10)
            return near.send(data)

    draining = threading.Thread(target=connection.handle_write, args=(None, 0))
    connection.deque.append(message(0, 2))
    connection._socket = Held()
    draining.start()
    assert begun.wait(10)
    connection.push(message(0, 1))
    go_on.set()
    draining.join()
    connection.handle_write(None, 0)
    assert far.recv(10_000) == message(0, 2) + message(0, 1)


@pytest.mark.usefixtures("restless")
def test_messages_of_several_threads_arrive_in_order_and_whole(ends):
    """While threads push and another sends what waits, no message is torn, lost or overtaken."""
    connection, far = ends
    stop = threading.Event()

    def push(thread):
        for number in range(MESSAGES):
            connection.push(message(thread, number))
            while len(connection.deque) > 1:  # often nothing waits, often something does
                os.sched_yield()

    def drain():
        while not stop.is_set():
            select.select([], [connection._socket], [], 0.01)  # as the driver's thread waits
            connection.handle_write(None, 0)

    found = {thread: [] for thread in range(THREADS)}
    threads = [threading.Thread(target=push, args=(thread,)) for thread in found]
    draining = threading.Thread(target=drain)
    draining.start()
    for thread in threads:
        thread.start()
    with far.makefile("rb") as stream:
        far.settimeout(20)
        try:
            for _ in range(THREADS * MESSAGES):
                head = stream.read(12)
                thread, number, size = struct.unpack(">III", head)
                assert stream.read(size) + head == bytes([thread]) * size + head
                found[thread].append(number)
        finally:
            stop.set()
            draining.join()
            connection.deque = deque(maxlen=0)  # where it failed, who still pushes goes on
            for each in threads:
                each.join()
    assert found == {thread: list(range(MESSAGES)) for thread in range(THREADS)}
