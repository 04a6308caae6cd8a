"""States from and to safetensors, torch.distributed.checkpoint and torch.save; hostile pickles do nothing."""

import errno
import os
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint

from holdall.checkpoints import exchange, pickles
from holdall.errors import BadInput, CorruptArtefact


def state():
    rng = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3).to(torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)
    optimizer.step()
    moments = {n: optimizer.state[p] for n, p in model.named_parameters()}
    groups = [{"lr": 1e-3, "betas": [0.9, 0.95], "params": [n for n, _ in model.named_parameters()]}]
    return {
        "model": model.state_dict(),
        "optimizer": {"state": moments, "param_groups": groups},
        "step": 12,
        "note": "x",
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_torch_files(tmp_path):
    kept = state()
    torch.save(kept, tmp_path / "theirs.pt")
    assert same(exchange.read(str(tmp_path / "theirs.pt")), kept)
    exchange.write_torch(kept, str(tmp_path / "ours.pt"))
    assert same(torch.load(tmp_path / "ours.pt", weights_only=True), kept)
    exchange.write_torch(kept, "memory://exchange/ours.pt")
    assert same(exchange.read("memory://exchange/ours.pt"), kept)
    (tmp_path / "torn.pt").write_bytes((tmp_path / "ours.pt").read_bytes()[:3000])
    with pytest.raises(CorruptArtefact):
        exchange.read(str(tmp_path / "torn.pt"))


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exchange.atomic_write, "write", full)
    with pytest.raises(OSError, match="No space left"):
        exchange.write_torch(state(), str(tmp_path / "a.pt"))
    assert not list(tmp_path.iterdir())


def test_torch_distributed_checkpoints(tmp_path):
    kept = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save(kept, checkpoint_id=tmp_path / "theirs", no_dist=True)
        exchange.write_dcp(kept, str(tmp_path / "ours"))
        like = state()
        torch.distributed.checkpoint.load(like, checkpoint_id=tmp_path / "ours", no_dist=True)
    assert same(exchange.read(str(tmp_path / "theirs")), kept)
    assert same(like, kept) and same(exchange.read(str(tmp_path / "ours")), kept)
    data = next((tmp_path / "ours").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-2000])
    with pytest.raises(CorruptArtefact):
        exchange.read(str(tmp_path / "ours"))


def test_safetensors(tmp_path):
    import safetensors.torch

    model = state()["model"]
    exchange.write_safetensors(model, str(tmp_path / "a.safetensors"))
    assert same(safetensors.torch.load_file(tmp_path / "a.safetensors"), dict(model))
    names = list(model)
    (tmp_path / "b").mkdir()
    for i, some in enumerate((names[:1], names[1:])):
        exchange.write_safetensors({n: model[n] for n in some}, str(tmp_path / f"b/model-{i}.safetensors"))
    assert same(exchange.read(str(tmp_path / "b")), {"model": dict(model)})
    with pytest.raises(BadInput, match="nested by name"):
        exchange.write_safetensors({"a": 3}, str(tmp_path / "c.safetensors"))
    (tmp_path / "b" / "again.safetensors").write_bytes((tmp_path / "b" / "model-0.safetensors").read_bytes())
    with pytest.raises(BadInput, match="in two"):
        exchange.read(str(tmp_path / "b"))


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_pickles_do_nothing(tmp_path):
    evil = pickle.dumps(Hostile(f"touch {tmp_path}/done"))
    assert pickles.read(evil, "x").name.endswith(".system")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(evil)
    with pytest.raises(CorruptArtefact, match="another make"):
        exchange.read(str(tmp_path / "dcp"))
    torch.save({"x": Hostile(f"touch {tmp_path}/done")}, tmp_path / "evil.pt")
    with pytest.raises(BadInput, match="tensors, numbers and text"):
        exchange.read(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "done").exists()


def test_pickles_as_data():
    plain = {
        "a": [1, 2.5, None, True, False, "x", b"y", 10**12, -3],
        ("k", 1): (1, 2, 3, 4),
        "e": [{}, [], ()],
    }
    for protocol in (3, 4, 5):
        assert pickles.read(pickle.dumps(plain, protocol), "x") == plain
    for raw in (b"", b"garbage", pickle.dumps(plain)[:-4]):
        with pytest.raises(CorruptArtefact):
            pickles.read(raw, "x")
