"""The commands on the real gcloud, where it is installed, against a Cloud TPU and a bucket on this machine.

No credentials are used: gcloud is told to do without, and to talk to a server here.
"""

import http.server
import json
import os
import re
import shutil
import threading

import pytest

from t5x_lite.tpu import gcloud, record, request
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.spec import JobSpec
from tests.tpu.conftest import JOB

pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud CLI is not installed")

OPERATION = {"name": "projects/my-project/locations/us-west4-a/operations/1", "done": False}


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as the APIs do; what was asked is kept."""

    asked: list = []

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, body))
        status, value = self.found(self.path.partition("?")[0])
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = answer

    def found(self, path):
        if self.command != "GET" and "/queuedResources" in path:
            return 200, OPERATION
        if path.endswith("/queuedResources/there"):
            labels = {"t5x-lite": "launch", "t5x-lite-job": "there", "t5x-lite-attempt": "2"}
            state = {"state": "FAILED", "failedData": {"error": {"code": 8, "message": "no more capacity"}}}
            created = "2026-11-26T02:00:00.123456789Z"
            specs = {"nodeSpec": [{"node": {"labels": labels}}]}
            return 200, {"name": path[4:], "state": state, "createTime": created, "tpu": specs}
        if "upload" in path and "ifGenerationMatch=0" in self.path:
            said = "At least one of the pre-conditions you specified did not hold."
            return 412, {"error": {"code": 412, "message": said}}
        if re.search("/o$", path) and "there" in self.path:
            entry = {"name": "t5x_lite/there/job.json", "bucket": "my-bucket", "generation": "17"}
            times = {"updated": "2026-11-26T02:00:00.123Z", "timeCreated": "2026-11-26T02:00:00.123Z"}
            rest = {"kind": "storage#object", "size": "3", "metageneration": "1", "storageClass": "STANDARD"}
            return 200, {"items": [rest | entry | times]}
        if re.search("/o$", path):
            return 200, {"kind": "storage#objects"}
        return 404, {"error": {"code": 404, "message": "it was not found", "status": "NOT_FOUND"}}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    before = dict(os.environ)
    os.environ |= {
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": here,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{here}storage/v1/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "NO_PROXY": "127.0.0.1",
        "T5X_LITE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    yield Server
    server.shutdown()
    os.environ.clear()
    os.environ.update(before)


def test_what_is_asked_for(server):
    job = JobSpec(**JOB | {"name": "there", "num_slices": 2, "spot": True, "wait_hours": 1})
    gcloud.run(request.create_words(job, "us-west4-a", 2, None, 0))
    _, path, body = server.asked[-1]
    asked = json.loads(body)
    [node] = asked["tpu"]["nodeSpec"]
    assert "queuedResourceId=there" in path and "/locations/us-west4-a/" in path
    assert asked["spot"] == {} and asked["queueingPolicy"] == {"validUntilDuration": "3600s"}
    assert node["multisliceParams"] == {"nodeCount": 2, "nodeIdPrefix": "there"}
    assert node["node"]["acceleratorType"] == "v5litepod-16"
    assert node["node"]["runtimeVersion"] == "v2-alpha-tpuv5-lite"
    assert node["node"]["labels"] == {"t5x-lite": "launch", "t5x-lite-job": "there", "t5x-lite-attempt": "2"}
    metadata = node["node"]["metadata"]
    assert metadata["t5x-lite-job"] == job.url and metadata["t5x-lite-attempt"] == "2"
    assert metadata["startup-script"] == request.STARTUP.read_text()

    gcloud.run(request.delete_words("there", "us-west4-a", "my-project"))
    assert server.asked[-1][0] == "DELETE" and "force=True" in server.asked[-1][1]


def test_what_is_answered(server):
    found = request.resource("there", "us-west4-a", "my-project")
    assert (found.state, found.attempt, found.error) == ("FAILED", 2, "no more capacity")
    assert found.created == pytest.approx(1795658400, abs=1)
    assert request.resource("gone", "us-west4-a", "my-project") is None
    assert record.listing("gs://my-bucket/t5x_lite/there/*") == {
        "gs://my-bucket/t5x_lite/there/job.json": ("17", pytest.approx(1795658400, abs=1))
    }
    assert record.listing("gs://my-bucket/t5x_lite/gone/*", "gs://my-bucket/t5x_lite/gone/heartbeat/*") == {}
    assert record.read("gs://my-bucket/t5x_lite/gone/claim.json") is None
    with pytest.raises(GcloudError) as error:
        gcloud.run(record.write_words(str(request.STARTUP), "gs://my-bucket/t5x_lite/gone/x", "0"))
    assert error.value.kind == "precondition"
