"""Messages on a socket, each with its length before it; an empty one is a sign of life."""

import socket
import struct

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 20


def send_frame(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)))
    if message:
        connection.sendall(message)


def receive_frame(connection: socket.socket) -> bytes:
    """Raises EOFError at the other side's end, TimeoutError where the socket has a timeout and
    nothing comes for that long."""
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    return _receive(connection, length)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = connection.recv(min(_CHUNK, size - len(received)))
        if not chunk:
            raise EOFError("the connection has ended")
        received += chunk
    return bytes(received)
