"""A camera of a network, as far as a reader asks of it: RTSP (RFC 2326), and what FFmpeg's RTP muxer makes of frames.

FFmpeg has a client and a publisher of RTSP alone, so the few answers of a server are given here:

    python rtsp_server.py TRANSPORT FRAMES GOODBYE      prints its address, and at the end what it has refused
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial

import av
import numpy as np

SIZE = (32, 48)
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 32\r\na=control:one\r\n"
)
_Send = Callable[[int, bytes], None]
"""A packet into a channel: 0 has the pictures, 1 the reports."""
# A goodbye comes after a report (RFC 3550).
_BYE = struct.pack(">BBHIBBHI", 0x80, 201, 1, 0, 0x81, 203, 1, 0)


class Camera:
    """Serves one reader so many frames, then says goodbye or pulls the plug.

    Args:
        transport: "tcp" or "udp"; the other one is refused, with 461.
    """

    def __init__(self, transport: str, frames: int, *, goodbye: bool):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(60)
        self._transport, self._frames, self._goodbye = transport, frames, goodbye
        self.address = f"rtsp://127.0.0.1:{self._listening.getsockname()[1]}/camera"
        self.refused = 0
        """Requests for the other transport."""

    def serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, connection.makefile("rb") as requests, socket.socket(type=socket.SOCK_DGRAM) as out:
            ports = [0, 0]
            while line := requests.readline().decode():
                head = dict(part.decode().strip().split(": ", 1) for part in iter(requests.readline, b"\r\n"))
                said, body, status, method = "", "", "200 OK", line.split()[0]
                if method == "DESCRIBE":
                    said, body = f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
                elif method == "SETUP":
                    wanted = head["Transport"]
                    if ("/TCP" in wanted) != (self._transport == "tcp"):
                        self.refused, status = self.refused + 1, "461 Unsupported transport"
                    said = f"Transport: {wanted};server_port=9000-9001\r\nSession: 1\r\n"
                    if "client_port=" in wanted:
                        ports = [int(port) for port in wanted.partition("client_port=")[2].split(";")[0].split("-")]
                elif method == "OPTIONS":
                    said = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                connection.sendall(f"RTSP/1.0 {status}\r\nCSeq: {head['CSeq']}\r\n{said}\r\n{body}".encode())
                if method == "PLAY":
                    self._play(partial(self._send, connection, out, ports))
                    if not self._goodbye:
                        return

    def _send(
        self, connection: socket.socket, out: socket.socket, ports: list[int], channel: int, packet: bytes
    ) -> None:
        if self._transport == "tcp":
            connection.sendall(struct.pack(">cBH", b"$", channel, len(packet)) + packet)
        else:
            out.sendto(packet, ("127.0.0.1", ports[channel]))

    def _play(self, send: _Send) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as inside:
            inside.bind(("127.0.0.1", 0))
            inside.setblocking(False)
            with av.open(f"rtp://127.0.0.1:{inside.getsockname()[1]}?rtcpport=9", "w", format="rtp") as container:
                stream = container.add_stream("mpeg2video", rate=25, options={"g": "1"})
                assert isinstance(stream, av.VideoStream)
                stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
                for number in range(self._frames):
                    picture = np.full((*SIZE, 3), 3 * number, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    self._pass_on(inside, send)
                container.mux(stream.encode())
                self._pass_on(inside, send)
        if self._goodbye:
            time.sleep(1)  # on UDP it must not overtake the last frame
            send(1, _BYE)

    @staticmethod
    def _pass_on(inside: socket.socket, send: _Send) -> None:
        time.sleep(0.02)
        while True:
            try:
                packet = inside.recv(65536)
            except BlockingIOError:
                return
            send(0, packet)


if __name__ == "__main__":
    camera = Camera(sys.argv[1], int(sys.argv[2]), goodbye=sys.argv[3] == "True")
    print(camera.address, flush=True)
    try:
        camera.serve()
    finally:
        print(camera.refused, flush=True)
