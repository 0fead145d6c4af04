"""Checkpoints are saved whole or not at all, and no code in them is run."""

import errno
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector import checkpoint
from detector.checkpoint import (
    DamagedCheckpoint,
    find_checkpoint,
    load_checkpoint,
    load_newest,
    load_tensors,
    load_weights,
    save_checkpoint,
    set_aside_damaged,
)
from errors import InputError
from tests.runs import no_file_larger_than


def content(seed: int = 0, size: int = 1000) -> dict[str, Any]:
    weights = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return {
        "model": {"w": weights},
        "config": {"train": {"epochs": 1}},
        "classes": ["cat"],
        "category_ids": [3],
        "step": 7,
        "epoch": 1,
    }


class MakesFile:
    """Unpickling an instance creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"].pop("w"), content()["model"]["w"])
    assert loaded == {**content(), "model": {}, "format": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_name_may_be_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 252 + ".pt")
    save_checkpoint(path, content())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_is_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(0))
    save_checkpoint(path, content(1))
    assert torch.equal(load_checkpoint(path)["model"]["w"], content(1)["model"]["w"])


@pytest.mark.parametrize("room", [0, 100, 5_000, 3_000_000])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, room: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(0))
    with no_file_larger_than(room), pytest.raises(InputError, match=r"cannot write .*last\.pt.*--resume"):
        save_checkpoint(path, content(1, size=1_000_000))
    assert torch.equal(load_checkpoint(path)["model"]["w"], content(0)["model"]["w"])
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*gone/last\.pt"):
        save_checkpoint(tmp_path / "gone" / "last.pt", content())


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({**content(), "extra": MakesFile(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"evil\.pt contains Python objects .* not loaded"):
        load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the danger is real: a less careful reader runs it
    assert marker.exists()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_damaged(tmp_path: Path, part: float) -> None:
    path = tmp_path / "half.pt"
    save_checkpoint(path, content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=r"half\.pt is damaged or incomplete"):
        load_checkpoint(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path, seed: int) -> None:
    """Anywhere in the file: what loads is what was saved."""
    path = tmp_path / "flipped.pt"
    save_checkpoint(path, content())
    whole = path.read_bytes()
    rng = random.Random(seed)
    found = 0
    for _ in range(60):
        altered = bytearray(whole)
        altered[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        try:
            loaded = load_checkpoint(path)
        except InputError:
            found += 1
            continue
        assert torch.equal(loaded["model"].pop("w"), content()["model"]["w"])
        assert loaded == {**content(), "model": {}, "format": 1}
    assert found > 30  # most of the file is weights


def test_a_checkpoint_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole after a power failure: bytes are synced before renames, these before the run goes on."""
    path, done = tmp_path / "last.pt", []
    save_checkpoint(path, content())
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append(
            next(p.name for p in (tmp_path, *tmp_path.iterdir()) if os.path.samestat(p.stat(), status))
        )
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> Path:
        done.append(f"{source.name} -> {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    save_checkpoint(path, content(1), tmp_path / "previous.pt")
    assert done == [
        ".last.pt.tmp",
        "previous.link -> previous.pt",
        ".last.pt.tmp -> last.pt",
        tmp_path.name,
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_ends_a_save_is_known_though_torch_makes_another_error_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Ctrl-C is not a full disk. torch itself writes the file: the error occurs in the middle of its code."""
    calls: list[int] = []

    class Disturbed(io.FileIO):
        def write(self, data: Any) -> int:
            calls.append(len(data))
            if len(calls) == 3:
                raise error
            return super().write(data)

    monkeypatch.setattr(checkpoint.io, "FileIO", Disturbed)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError) as caught:
        save_checkpoint(tmp_path / "last.pt", {**content(1), "more": [torch.ones(10_000)] * 5})
    assert isinstance(error, KeyboardInterrupt) or "(No space left on device)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_device_is_not_told_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's own errors surface where its tensors are read: here."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    save_checkpoint(tmp_path / "last.pt", {**content(), "step": 1})
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_checkpoint(tmp_path / "last.pt", content(2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "checkpoints" / "last.pt", tmp_path / "checkpoints" / "previous.pt"
    path.parent.mkdir()
    for seed in range(3):
        save_checkpoint(path, {**content(seed), "step": seed}, previous)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous)["step"]) == (2, 1)
    assert load_newest(tmp_path)["step"] == 2
    path.unlink()  # as between the two renames
    assert load_newest(tmp_path)["step"] == 1


def test_the_checkpoint_before_is_kept_on_a_disk_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(link: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(3):
        save_checkpoint(path, {**content(), "step": step}, previous)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous)["step"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("left", ["a link", "one file under both names"])
def test_what_a_kill_between_the_renames_leaves_is_cleared_away(tmp_path: Path, left: str) -> None:
    """Otherwise it would take up the space of a checkpoint for as long as the run folder is kept."""
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(2):
        save_checkpoint(path, {**content(), "step": step}, previous)
    if left == "a link":
        (tmp_path / "previous.link").hardlink_to(previous)
    else:
        previous.unlink()
        previous.hardlink_to(path)
    save_checkpoint(path, {**content(), "step": 2}, previous)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous)["step"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    path, previous = tmp_path / "checkpoints" / "last.pt", tmp_path / "checkpoints" / "previous.pt"
    path.parent.mkdir()
    for seed in range(2):
        save_checkpoint(path, {**content(seed), "step": seed}, previous)
    set_aside_damaged(tmp_path)
    assert load_checkpoint(path)["step"] == 1
    path.write_bytes(path.read_bytes()[:-100])
    set_aside_damaged(tmp_path)
    save_checkpoint(path, {**content(2), "step": 2}, previous)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous)["step"]) == (2, 0)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run must not go back to an older one because a disk does not answer."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    save_checkpoint(tmp_path / "last.pt", content())
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match=rf"last\.pt cannot be read \({error.strerror}") as caught:
        load_checkpoint(tmp_path / "last.pt")
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_a_run_whose_last_checkpoint_cannot_be_read_does_not_go_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole once the disk answers; otherwise steps would be repeated, and it would be overwritten."""
    path, previous = tmp_path / "checkpoints" / "last.pt", tmp_path / "checkpoints" / "previous.pt"
    path.parent.mkdir()
    for step in (1, 2):
        save_checkpoint(path, {**content(), "step": step}, previous)
    load = torch.load

    def fail_for_the_last(file: Path, **how: Any) -> Any:
        if file == path:
            raise OSError(errno.EIO, "Input/output error")
        return load(file, **how)

    monkeypatch.setattr(torch, "load", fail_for_the_last)
    assert load_checkpoint(previous)["step"] == 1
    with pytest.raises(InputError, match=r"last\.pt cannot be read \(Input/output error\)"):
        load_newest(tmp_path)


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b"\x80\x02", b"garbage\n", b"\x89PNG\r\n"])
def test_garbage_is_damaged(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "garbage.pt"
    path.write_bytes(start + bytes(range(256)) * 8)
    with pytest.raises(InputError, match=r"garbage\.pt is damaged or incomplete"):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pt does not exist"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("missing", ["model", "config", "classes", "category_ids", "step", "epoch"])
def test_a_file_that_lacks_a_part_is_no_checkpoint(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "part.pt"
    whole = content()
    for parts in ({key: value for key, value in whole.items() if key != missing}, {**whole, missing: None}):
        save_checkpoint(path, parts)
        with pytest.raises(InputError, match=r"part\.pt is not a checkpoint of this project"):
            load_checkpoint(path)


def test_a_plain_state_dict_can_be_read_as_tensors(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save(nn.Linear(2, 3).state_dict(), path)
    assert set(load_tensors(path)) == {"weight", "bias"}
    with pytest.raises(InputError, match=r"model\.init"):
        load_checkpoint(path)


def test_the_file_holds_no_more_than_tensors_and_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    assert torch.load(io.BytesIO(path.read_bytes()), weights_only=True)["step"] == 7


def test_find_checkpoint_takes_a_run_folder_or_a_file(tmp_path: Path) -> None:
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    best.parent.mkdir(parents=True)
    best.touch()
    assert find_checkpoint(tmp_path / "run") == best
    assert find_checkpoint(best) == best
    best.unlink()
    with pytest.raises(InputError, match=r"run has no checkpoints/best\.pt"):
        find_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("other", "named"),
    [(nn.Linear(2, 4), "'weight' has shape"), (nn.Linear(2, 3, bias=False), "has no 'bias'")],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(other: nn.Module, named: str) -> None:
    model = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"that.pt.*{named}"):
        load_weights(model, other.state_dict(), "that.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_too_many_are_named() -> None:
    with pytest.raises(InputError, match=r"that\.pt has 'bias', which this model does not"):
        load_weights(nn.Linear(2, 3, bias=False), nn.Linear(2, 3).state_dict(), "that.pt")
