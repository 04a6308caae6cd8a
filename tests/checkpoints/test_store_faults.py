"""The floors of the room, how states are compared, and checks that broken stores fail."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from deadly import DEADLY

from holdall.checkpoints import DataStates, DeepCopy, TorchSave, quality
from holdall.checkpoints.awaited import Awaited
from holdall.checkpoints.publish import Folder, nobody
from holdall.checkpoints.whole import Whole
from holdall.checks import store, store_faults
from holdall.errors import BudgetError, CorruptArtefact
from holdall.method import knob


@dataclass(frozen=True, kw_only=True)
class Broken(DeepCopy):
    """A store like the floor, but for what a test breaks."""

    dead: int = knob(1, "does nothing", other=2)

    def open(self, url, memory=None):
        return type(self).keeper(self, url, memory, background=True)


def broken(keeper_class):
    return dataclass(frozen=True, kw_only=True)(
        type("B", (Broken,), {"keeper": keeper_class, "__module__": __name__})
    )


class ByReference(Whole):
    def _copy(self, saved, state, nbytes):
        import time

        self._jobs.put(lambda: (time.sleep(0.05), self._follow(saved, state)))


class Hog(Whole):
    def __init__(self, recipe, url, memory, background):
        super().__init__(recipe, url, memory, background)
        self._limit = None


class InPlace(Whole):
    def _write(self, step, state):
        data = next(iter(Path(self._folder.url).glob(f"{step}-*.data")), None)
        if data is None:
            return super()._write(step, state)
        (data / "state.pt").write_bytes(b"")
        os.fsync(os.open(data, os.O_RDONLY))
        self._folder._remove(str(data))
        return super()._write(step, state)


class Trusting(Whole):
    def _read(self, url, said):
        return torch.load(url, weights_only=False)


class Silent(Awaited):
    def wait(self, timeout=None):
        self.ended.wait(timeout)
        return self._nbytes


class Quiet(Whole):
    def save(self, step, state, wait=False):
        receipt = super().save(step, state, wait)
        receipt.wait = lambda timeout=None: Silent.wait(receipt, timeout)
        return receipt


class Littering(Whole):
    def _write(self, step, state):
        Path(self._folder.url, f"left{len(list(Path(self._folder.url).iterdir()))}.tmp").write_bytes(b"")
        return super()._write(step, state)


class Untied(Whole):
    def _copy(self, saved, state, nbytes):
        own = quality.copied(state)
        self._jobs.put(lambda: self._follow(saved, own))


class Careless(Whole):
    def load(self, step=None, like=None):
        found = super().load(step)
        for name, t in (like or {}).get("model", {}).items():
            if name in found["model"] and torch.is_tensor(t) and t.shape == found["model"][name].shape:
                t.copy_(found["model"][name])
        return super().load(step, like)


class Immortal(Whole):
    def _check(self):
        pass


@pytest.mark.parametrize(
    ("keeper", "check", "why"),
    [
        (ByReference, store.check_a_snapshot_is_of_its_moment, "is another"),
        (Hog, store.check_memory_is_kept, "bytes for"),
        (
            InPlace,
            store_faults.check_a_failing_disk_leaves_the_old_one,
            "neither|NoneType|damaged|one of the steps",
        ),
        (Trusting, store_faults.check_damage_is_named, "ends in|unseen"),
        (Quiet, store_faults.check_a_failure_in_the_background_is_told, "nobody is told"),
        (Littering, store.check_a_step_saved_again_is_the_new_one, "behind"),
        (Untied, store.check_shared_memory_is_written_once, "bytes for|as two"),
        (Careless, store_faults.check_what_does_not_fit_is_told, "changes a state"),
        (Immortal, store_faults.check_use_after_close_is_an_error, "closed"),
        (Whole, store.check_knobs_are_live, "dead: results do not change"),
    ],
)
def test_a_broken_store_fails_its_check(keeper, check, why):
    with pytest.raises((AssertionError, CorruptArtefact, ValueError), match=why):
        check(broken(keeper))


def test_states_are_compared_bit_for_bit():
    state = quality.odd()
    assert quality.same(state, quality.copied(state))
    for change in (
        lambda s: s["model"].update(scalar=torch.tensor(0.0)),  # it was -0.0
        lambda s: s["model"].update(half=s["model"]["half"].bfloat16()),
        lambda s: s.update(step=12.0),
        lambda s: s.update(text="u"),
        lambda s: s["list"].pop(),
        lambda s: s["model"].pop("none"),
        lambda s: s["model"].update(none=torch.empty(3, 0)),
    ):
        other = quality.copied(state)
        change(other)
        assert not quality.same(state, other)
    spoiled = quality.copied(state)
    quality.spoiled(spoiled)
    pairs = zip(quality.tensors(state), quality.tensors(spoiled), strict=True)
    assert all(not quality.same(a, b) for a, b in pairs if a.numel() and a.any())


@pytest.mark.parametrize("method", [TorchSave(keep=2), DeepCopy(keep=2)])
def test_floors_are_plain_files_of_torch(method, tmp_path):
    with method.open(str(tmp_path)) as kept:
        for step in range(4):
            state = quality.real(steps=step + 1)
            kept.save(step, state)
        kept.load()
        assert kept.steps() == [2, 3] and len(list(tmp_path.iterdir())) == 4
        (file,) = tmp_path.glob("3-*.data/state.pt")
        assert quality.same(torch.load(file, weights_only=True), state)
        copied = kept.traffic()["copied_bytes"]
        assert copied == (4 * quality.original_bytes(state) if isinstance(method, DeepCopy) else 0)


def test_a_copy_needs_the_memory_of_the_state(tmp_path):
    state = {"w": torch.zeros(3 << 20)}
    with DeepCopy().open(str(tmp_path), "8MB") as kept:
        with pytest.raises(BudgetError, match="a whole copy") as caught:
            kept.save(1, state)
        assert kept.steps() == []
    with DeepCopy().open(str(tmp_path), caught.value.least) as kept:
        kept.save(1, state, wait=True)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/holdall-was-here",)


def test_a_pickle_that_calls_is_refused_in_one_line(tmp_path):
    import xxhash

    with TorchSave().open(str(tmp_path)) as kept:
        for step, raw in enumerate((pickle.dumps({"w": Hostile()}), pickle.dumps(print), b"PK", b"")):
            folder = Folder(str(tmp_path), "checkpoints.none")
            folder.begin(f"{step}-x")
            (tmp_path / f"{step}-x.data" / "state.pt").write_bytes(raw)
            folder.publish(
                step, {"bytes": len(raw), "xxh3": xxhash.xxh3_128_hexdigest(raw)}, f"{step}-x", 0, nobody
            )
            with pytest.raises(CorruptArtefact) as caught:
                kept.load(step)
            assert "\n" not in str(caught.value)
    assert not Path("/tmp/holdall-was-here").exists()


def test_a_bit_in_the_first_line_costs_no_data(tmp_path):
    state = quality.real(width=8)
    with TorchSave().open(str(tmp_path)) as kept:
        for step in (1, 2):
            kept.save(step, state)
        manifest = tmp_path / "1.checkpoint"
        good = manifest.read_bytes()
        at = good.index(b'"data": "1-') + 12
        manifest.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(CorruptArtefact):
            kept.load(1)
        kept.save(3, state)  # and sweeps
        manifest.write_bytes(good)
        assert quality.same(kept.load(1), state)


def test_what_another_rank_has_begun_is_not_swept_away(tmp_path, monkeypatch):
    real = Folder._folders
    with DataStates().open(str(tmp_path), "1MB") as kept:
        later, stale = f"5-{kept._nonce}7", "5-0123456789"

        def begun_meanwhile(self):
            self.begin(later)
            self.begin(stale)
            return real(self)

        monkeypatch.setattr(Folder, "_folders", begun_meanwhile)
        kept.save(1, {"w": torch.ones(3)}, wait=True)
        assert (tmp_path / f"{later}.data").is_dir() and not (tmp_path / f"{stale}.data").exists()


def test_a_report_beside_the_floors():
    report = quality.measure(DataStates(), "4MB", quick=True)
    rows = report.rows
    assert list(rows) == ["checkpoints.none", "checkpoints.copying", "checkpoints.datastates"]
    state = rows["checkpoints.none"]["state_bytes"]
    assert all(r["bytes"] >= state and r["durable_seconds"] > 0 for r in rows.values())
    assert (
        rows["checkpoints.datastates"]["peak_bytes"] < 9e6 < state < rows["checkpoints.copying"]["peak_bytes"]
    )


TRAINING = """
import json, random, sys, time, torch
from pathlib import Path
from holdall.checkpoints import DataStates, quality
folder, how = sys.argv[1:]
torch.set_num_threads(1)
STEPS = 20
def losses_of(folder, log):
    made = torch.Generator().manual_seed(3)
    batches = [torch.randn(8, 24, generator=made) for _ in range(STEPS)]
    model, optimizer, _ = quality.run()
    done = 0
    with DataStates(how=how, keep=1, rate=4e6).open(folder, "1MB") as kept:
        if kept.steps():
            state = kept.load()
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            done = state["step"] + 1
        kept.attach(optimizer)
        for step in range(done, STEPS):
            loss = model(batches[step]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log(step, loss.item())
            kept.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
wanted = {}
losses_of(folder + "/plain", wanted.__setitem__)
rng, seen, kills = random.Random(0), {}, 0
place = folder + "/killed"
while True:
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        losses_of(place, lambda step, loss: os.write(into, f"{step} {loss!r}\\n".encode()))
        os._exit(0)
    os.close(into)
    if kills < 6:
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(pid, signal.SIGKILL)
        kills += 1
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for line in os.fdopen(out, "rb").read().decode().splitlines():
        step, _, loss = line.partition(" ")
        assert wanted[int(step)] == float(loss), (step, loss, wanted[int(step)])
        seen[int(step)] = seen.get(int(step), 0) + 1
    if code == 0:
        break
    names = sorted(p.name for p in Path(place).iterdir()) if Path(place).exists() else []
assert sorted(seen) == list(range(STEPS)), seen
with DataStates(how=how, keep=1).open(place, "1MB") as kept:
    kept.save(STEPS, {})
left = sorted(p.suffix for p in Path(place).iterdir())
assert left == [".checkpoint", ".data"], left
print(json.dumps([kills, sum(seen.values())]))
"""


@pytest.mark.parametrize("how", ["ring", "fork"])
def test_training_that_is_killed_goes_on_on_the_same_losses(how, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", DEADLY + TRAINING, tmp_path, how], env=env, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    kills, steps = json.loads(told.stdout)
    assert kills >= 2 and steps >= 20


def test_a_far_tier_on_s3(tmp_path, bucket):
    import s3fs

    states = {step: quality.real(width=16, steps=step) for step in (1, 2)}
    for method in (DataStates(tier=str(tmp_path / "near"), keep=1), TorchSave(keep=1)):
        url = f"s3://{bucket}/{method.name}"
        with method.open(url, "8MB") as kept:
            for step, state in states.items():
                kept.save(step, state)
            kept.load()
        names = s3fs.S3FileSystem().ls(url.removeprefix("s3://"), refresh=True)
        assert len(names) == 2, names  # the manifest, and one folder of data
        with method.but(**{"tier": ""} if method.name == "datastates" else {}).open(url, "8MB") as kept:
            assert kept.steps() == [2] and quality.same(kept.load(), states[2])
    with DataStates().open(str(tmp_path / "near")) as kept:
        assert quality.same(kept.load(), states[2])
