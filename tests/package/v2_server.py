"""A model folder served over the v2 inference protocol on loopback, for tests of clients.

Speaks what `tritonclient.http` needs: readiness, configuration, inference with binary tensors, classification. It does
with a request what tests.package.triton_rules says that Triton does, and answers with ONNX Runtime.

Source: https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf import json_format

from tests.package import triton_rules

HEADER = "Inference-Header-Content-Length"
NUMPY = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
PROTOCOL = {name: kind for kind, name in NUMPY.items()}


@contextlib.contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve one model's folder until the block ends; yields `127.0.0.1:PORT`."""
    config = triton_rules.parse((model / "config.pbtxt").read_bytes())
    assert config.name == model.name
    path = model / "1" / "model.onnx"
    session = ort.InferenceSession(path / "model.onnx" if path.is_dir() else path, providers=["CPUExecutionProvider"])
    triton_rules.load(config, session)
    triton_rules.warm_up(config, model, session)
    labels = {
        io.name: (model / io.label_filename).read_text().splitlines() for io in config.output if io.label_filename
    }

    class Handler(_Handler):
        served = (config, session, labels)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self):
        config = self.served[0]
        name = f"/v2/models/{config.name}"
        if self.path in ("/v2/health/live", "/v2/health/ready", f"{name}/ready"):
            self._reply(200, b"")
        elif self.path == f"{name}/config":
            self._reply(200, json_format.MessageToJson(config, preserving_proto_field_name=True).encode())
        else:
            self._reply(404, json.dumps({"error": f"unknown {self.path}"}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != f"/v2/models/{self.served[0].name}/infer":
            self._reply(404, json.dumps({"error": f"unknown {self.path}"}).encode())
            return
        try:
            head, content = self._answer(body, int(self.headers.get(HEADER, len(body))))
        except triton_rules.RefusedError as error:
            self._reply(400, json.dumps({"error": str(error)}).encode())
            return
        self._reply(200, head + content, {HEADER: str(len(head))})

    def _answer(self, body, length):
        config, session, labels = self.served
        asked, place, request = json.loads(body[:length]), length, {}
        for tensor in asked["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            values = np.frombuffer(body[place : place + size], NUMPY[tensor["datatype"]])
            request[tensor["name"]] = values.reshape(tensor["shape"])
            place += size
        results = triton_rules.answer(config, session, [request])[0]
        shown, content = [], b""
        for wanted in asked.get("outputs") or [{"name": name} for name in results]:
            triton_rules.refuse_if(wanted["name"] not in results, f"unexpected inference output '{wanted['name']}'")
            array, datatype = results[wanted["name"]], None
            count = wanted.get("parameters", {}).get("classification", 0)
            if count:
                array = triton_rules.classify(
                    array, count, labels.get(wanted["name"], []), is_batched=config.max_batch_size > 0
                )
                data, datatype = b"".join(struct.pack("<I", len(text)) + text for text in array.flat), "BYTES"
            else:
                data = np.ascontiguousarray(array).tobytes()
            shown.append({
                "name": wanted["name"],
                "datatype": datatype or PROTOCOL[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(data)},
            })  # fmt: skip
            content += data
        return json.dumps({"model_name": config.name, "model_version": "1", "outputs": shown}).encode(), content

    def _reply(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass
