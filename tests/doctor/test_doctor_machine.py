"""metalearn doctor: what it says of a sound machine, and that it notices planted faults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.cli import main as cli
from metalearn.data import omniglot
from metalearn.doctor import checks, gradients, machine, storage
from metalearn.doctor.checks import FailedError, SkippedError
from metalearn.doctor.examine import examine_machine
from metalearn.engine.executor import Executor, Sums, TaskPlan
from metalearn.errors import DataError
from metalearn.functional import descend
from metalearn.rundir import checkpoint_files
from tests.plugins import METHODS, class_of

# One method for each of what it may learn from, if a plan maps it at all.
MAPPED = {class_of(m).trains_on: m for m in METHODS if class_of(m).trains_on != "examples"}.values()

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
# The check as it is, with a host that forgets its settings, and as it is once more.
ALLOCATORS = """
import ctypes
from metalearn.doctor import machine
from metalearn.doctor.checks import FailedError, SkippedError

def forgetful(cfg):
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 65536)  # M_MMAP_MAX
    libc.mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD

ordinary, block = machine.prepare_host, machine.BLOCK
for host in (ordinary, forgetful, ordinary):
    machine.prepare_host = host
    machine.BLOCK = block if host is ordinary else 1 << 30  # more than was left free before
    try:
        print(machine.allocator())
    except FailedError as error:
        print(error)
    except SkippedError as error:
        print("skipped", error)
        break
"""
pytestmark = pytest.mark.usefixtures("as_it_was")


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler without its C++, which takes ten seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def test_a_sound_machine_passes_every_check(
    quick_compiler: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # what earlier tests have left on the heap of this process is no matter; see below
    monkeypatch.setattr("metalearn.doctor.examine.allocator", lambda: "keeps large temporaries")
    code, lines = examine_machine(), capsys.readouterr().out.splitlines()
    assert code == 0, lines
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}
    said = "\n".join(lines)
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    for check in (
        "versions",
        "device",
        "processor",
        "threads",
        "second order",
        "plans of maml",
        "compiled plan",
        "checkpoints",
    ):
        assert f"ok      {check}: " in said
    assert "skipped data omniglot: not here" in said


@pytest.mark.slow
def test_a_sound_machine_passes_with_the_real_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert (
        "ok      compiled plan: loop = vmap compiled but for" in capsys.readouterr().out
    ) == gradients.has_compiler()


def test_one_check_that_fails_or_breaks_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> str:
        raise DataError("one\ntwo")

    def skipping() -> str:
        raise SkippedError("not here")

    every: list[checks.Check] = [
        ("a", failing),
        ("b", lambda: str(1 / 0)),
        ("c", skipping),
        ("d", Path("/no/such").read_text),
        ("e", lambda: "well"),
    ]
    assert checks.examine(every) == ["a", "b", "d"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAILED  a: one two"
    assert lines[1].startswith("FAILED  b: ZeroDivisionError: division by zero; ")
    assert lines[2:] == [
        "skipped c: not here",
        "FAILED  d: [Errno 2] No such file or directory: '/no/such'; make room or give permission there, "
        "then run it again",
        "ok      e: well",
    ]


def test_any_failure_is_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("metalearn.doctor.examine.plans", list)
    monkeypatch.setattr("metalearn.doctor.examine.second_order", lambda: str(1 / 0))
    assert cli.main(["doctor"]) == 1
    assert "FAILED  second order: ZeroDivisionError" in capsys.readouterr().out


def params_of(executor: Executor) -> dict[str, Any]:
    return dict(executor.algorithm.named_parameters())


def spoil(monkeypatch: pytest.MonkeyPatch, which: Callable[[Executor], list[str]]) -> None:
    """Make NaN of the gradients of the parameters that `which` names."""
    right = Executor.sums

    def wrong(executor: Executor, batch: Any) -> Sums:
        sums = right(executor, batch)
        return sums._replace(
            grads={**sums.grads, **{name: sums.grads[name] * torch.nan for name in which(executor)}}
        )

    monkeypatch.setattr(Executor, "sums", wrong)


class TestGradients:
    @pytest.mark.parametrize(
        ("first_order", "sentence"),
        [(True, "algo.order=2 is .* off finite"), (False, "takes second derivatives too")],
    )
    def test_a_wrong_order_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch, first_order: bool, sentence: str
    ) -> None:
        wrong = lambda *args, **kwargs: descend(*args, **{**kwargs, "first_order": first_order})  # noqa: E731
        monkeypatch.setattr("metalearn.algorithms.maml.descend", wrong)
        with pytest.raises(FailedError, match=sentence):
            gradients.second_order()

    @pytest.mark.parametrize("order", [1, 2])
    def test_second_order_that_is_not_finite_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch, order: int
    ) -> None:
        spoil(
            monkeypatch,
            lambda executor: list(params_of(executor)) if executor.algorithm.order == order else [],
        )
        with pytest.raises(FailedError, match="off finite differences .*algo.order=1"):
            gradients.second_order()

    @pytest.mark.parametrize(
        ("plans", "spoiled"), [(("loop", "vmap"), slice(None)), (("vmap",), slice(-1, None))]
    )
    def test_a_gradient_that_is_not_finite_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch, plans: tuple[str, ...], spoiled: slice
    ) -> None:
        """Of every parameter under every plan, or of the last one under vmap alone."""
        spoil(
            monkeypatch,
            lambda executor: list(params_of(executor))[spoiled] if executor.plan.name in plans else [],
        )
        with pytest.raises(FailedError, match="gradient of .* is inf off under vmap"):
            gradients.same_plans("maml")

    @pytest.mark.parametrize("algo", MAPPED)
    def test_a_wrong_plan_is_noticed(self, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
        right = TaskPlan.map

        def wrong(plan: TaskPlan, function: Callable[..., Any], *batches: Any) -> Any:
            result = right(plan, function, *batches)
            off = torch.utils._pytree.tree_map(
                lambda leaf: leaf * (1 + 1e-7) if leaf.is_floating_point() else leaf, result
            )
            return off if plan == TaskPlan("vmap", 2) else result

        monkeypatch.setattr(TaskPlan, "map", wrong)
        with pytest.raises(
            FailedError,
            match=r"is [\d.]+e-0\d off under vmap chunk 2, relative to loop .*; use device.plan=loop",
        ):
            gradients.same_plans(algo)

    def test_a_compiler_that_is_wrong_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(function: Callable[..., Any], **dials: Any) -> Callable[..., Any]:
            return lambda *args: torch.utils._pytree.tree_map(lambda leaf: leaf * 1.0001, function(*args))

        monkeypatch.setattr(torch, "compile", wrong)
        with pytest.raises(
            FailedError, match="off under vmap compiled, relative to loop .*; use device.compile=false"
        ):
            gradients.compiled()

    def test_without_a_compiler_its_check_is_skipped_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gradients.shutil, "which", lambda name: None)
        with pytest.raises(SkippedError, match=r"there is no C\+\+ compiler"):
            gradients.compiled()


class TestMachine:
    def test_versions_that_were_not_asked_for_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = machine.wanted_versions()
        assert (
            wanted["torch"] == ">=2.10"
            and wanted["python"]
            and set(wanted["hydra-core"].split(",")) == {">=1.3.8", "<1.5"}
        )
        monkeypatch.setattr(
            machine, "wanted_versions", lambda: {**wanted, "torch": ">=99.1", "hydra-core": ">=1,<1.3"}
        )
        with pytest.raises(
            FailedError,
            match=r"torch .* is not >=99.1, hydra-core .* is not >=1,<1.3; repair it with: pip install",
        ):
            machine.versions()

    @pytest.mark.parametrize(
        ("found", "wanted", "answer"),
        [
            ("2.14.1", ">=2.10", True),
            ("2.9.1", ">=2.10", False),
            ("1.4.0rc3", ">=1.3.8,<1.5", True),
            ("1.5", ">=1.3.8,<1.5", False),
            (None, ">=1", True),
        ],
    )
    def test_versions_are_compared_as_numbers(self, found: str | None, wanted: str, answer: bool) -> None:
        assert machine.fits(found, wanted) == answer

    def test_a_gpu_that_pytorch_does_not_find_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(machine, "GPU", tmp_path)
        with pytest.raises(FailedError, match="finds no CUDA device; compare with nvidia-smi"):
            machine.device()

    def test_more_threads_than_cores_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "default_threads", lambda: 8)
        monkeypatch.setattr(machine, "num_cores", lambda: 2)
        assert machine.threads().startswith("8 of 2 cores; set device.threads=2")

    def test_an_allocator_that_maps_anew_is_noticed(self) -> None:
        """In a process of its own, since what earlier tests have left on the heap decides, too."""
        done = subprocess.run(
            [sys.executable, "-c", ALLOCATORS], capture_output=True, text=True, check=False, env=PLAIN
        )
        assert done.returncode == 0, done.stderr
        if done.stdout.startswith("skipped"):
            pytest.skip(done.stdout)
        sound, forgetful, again = done.stdout.splitlines()
        assert "keeps" in sound
        assert "maps large temporaries anew" in forgetful
        assert "keeps" in again


class TestStorage:
    def test_a_flipped_bit_that_is_not_noticed_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "a flipped bit is refused" in storage.bit_flip()
        monkeypatch.setattr(checkpoint_files, "_verified", lambda path, listed: path.read_bytes())
        with pytest.raises(
            FailedError, match="a checkpoint with a flipped bit is loaded as if it were whole"
        ):
            storage.bit_flip()

    def test_a_damaged_archive_is_noticed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "omniglot").mkdir()
        (tmp_path / "omniglot" / "images_background.zip").write_bytes(b"no archive")
        monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
        with pytest.raises(DataError, match=r"images_background\.zip is damaged or incomplete"):
            storage.audit("omniglot")

    def test_one_part_of_omniglot_without_the_other_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {"images_background": Path("images_background.zip"), "images_evaluation": None}
        monkeypatch.setattr(omniglot, "verify", lambda places: found)
        with pytest.raises(
            DataError,
            match=r"images_evaluation is not here, .*\(looked in .*\); fetch it with: metalearn data prepare",
        ):
            storage.audit("omniglot")

    def test_data_that_is_not_here_is_no_failure(self) -> None:
        with pytest.raises(
            SkippedError, match=r"not here \(looked in .*\); fetch it with: metalearn data prepare omniglot"
        ):
            storage.audit("omniglot")
        with pytest.raises(SkippedError, match="your own files"):
            storage.audit("image_folder")
