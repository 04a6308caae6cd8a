"""What all tests share."""

import gc
import uuid

import pytest


@pytest.fixture(autouse=True, scope="module")
def _collections_look_at_what_is_new():
    """Objects of torch and its like, half a million, outlive every module: each measure of memory begins with a
    collection, and walked through all of them for a third of a second."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture
def bucket(monkeypatch):
    """The name of an empty bucket on an S3 server of this process; servers share what they hold, so it is a new one."""
    pytest.importorskip("s3fs", reason="S3 needs the extra s3")
    server = pytest.importorskip("moto.server", reason="an S3 server to test with").ThreadedMotoServer(
        port=0, verbose=False
    )
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(key, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        name = f"shelf-{uuid.uuid4().hex}"
        s3fs.S3FileSystem().mkdir(name)
        yield name
    finally:
        server.stop()
