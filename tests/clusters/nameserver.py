"""A DNS server on a port of this machine that answers SRV questions."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

TICK_S = 0.05


class NameServer:
    """Answers every SRV question with ``records``: priority, port and host."""

    def __init__(self) -> None:
        self.records: list[tuple[int, int, str]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(TICK_S)
        self.port: int = self._socket.getsockname()[1]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ends.is_set():
            try:
                question, sender = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, question: bytes) -> bytes:
        import dns.message
        import dns.rrset

        asked = dns.message.from_wire(question)
        answer = dns.message.make_response(asked)
        if self.records:
            texts = [f"{priority} 0 {port} {h}." for priority, port, h in self.records]
            name = asked.question[0].name
            answer.answer.append(dns.rrset.from_text(name, 1, "IN", "SRV", *texts))
        return answer.to_wire()
