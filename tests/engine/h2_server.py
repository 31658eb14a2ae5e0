"""A server in HTTP/2 with prior knowledge, for one connection (python3-h2)."""
import h2.config
import h2.connection
import h2.events as e


def serve(s, answer):
    """Collects each request and calls answer(connection, stream, head, body)."""
    c = h2.connection.H2Connection(h2.config.H2Configuration(
        client_side=False, header_encoding="latin1"))
    c.initiate_connection()
    s.sendall(c.data_to_send())
    heads, bodies = {}, {}
    while True:
        data = s.recv(65536)
        if not data:
            return
        for ev in c.receive_data(data):
            if isinstance(ev, e.RequestReceived):
                heads[ev.stream_id] = dict(ev.headers)
                bodies[ev.stream_id] = b""
            elif isinstance(ev, e.DataReceived):
                bodies[ev.stream_id] += ev.data
                c.acknowledge_received_data(ev.flow_controlled_length,
                                            ev.stream_id)
            elif isinstance(ev, e.StreamEnded):
                n = ev.stream_id
                answer(c, n, heads.pop(n), bodies.pop(n))
        s.sendall(c.data_to_send())
