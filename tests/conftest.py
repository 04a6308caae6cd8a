"""What all tests share."""

import fcntl
import gc
import uuid

import pytest


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """once(name, make): a path that make(path) has filled, by whichever process of this run asked first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "once"
    folder.mkdir(exist_ok=True)

    def made(name, make):
        path = folder / name
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(folder / f"{name}.unfinished")
                (folder / f"{name}.unfinished").rename(path)
        return path

    return made


@pytest.fixture(scope="session")
def smollm2_at_4_bits(once):
    """The path of SmolLM2 rounded to 4 bits."""
    from holdall.weights import Model, RoundToNearest

    return str(
        once("smollm2-4bit.hold", lambda to: RoundToNearest(bits=4).encode(Model.read("smollm2"), to=str(to)))
    )


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
