"""metalearn doctor: what it says of a sound machine and a sound run, and that it notices planted faults."""

from __future__ import annotations

import ctypes
import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn import build, cli, completion
from metalearn.doctor import checks, examine_machine, gradients, machine, storage
from metalearn.doctor.checks import FailedError, SkippedError
from metalearn.engine import checkpoint
from metalearn.engine.checkpoint import TENSORS, CheckpointStore
from metalearn.engine.execution import Executor, Sums, TaskPlan
from metalearn.errors import DataError
from metalearn.functional import gradient_descent

TINY = [
    *("device=cpu", "device.threads=1", "data=sinusoid", "algo=maml", "trainer.outer_steps=4", "trainer.meta_batch_size=2"),
    *("trainer.checkpoint_every=2", "trainer.eval_every=2", "trainer.log_every=2", "eval.val_episodes=2", "eval.episodes=3"),
]
M_MMAP_THRESHOLD = -3  # names of glibc's malloc.h


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Type and threads of this process are those from before, and no data of this machine is read."""
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler without its C++, which takes ten seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def test_a_sound_machine_passes_every_check(quick_compiler: None) -> None:
    lines: list[str] = []
    assert examine_machine(lines.append) == 0, lines
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}
    said = "\n".join(lines)
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    for check in ("versions", "device", "processor", "threads", "second order", "plans of maml", "compiled plan", "checkpoints"):
        assert f"ok      {check}: " in said
    assert "skipped data omniglot: not here" in said


@pytest.mark.slow
def test_a_sound_machine_passes_with_the_real_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert ("ok      compiled plan: loop = vmap compiled but for" in capsys.readouterr().out) == gradients.has_compiler()


def test_one_check_that_fails_or_breaks_hides_no_other() -> None:
    def failing() -> str:
        raise DataError("one\ntwo")

    def skipping() -> str:
        raise SkippedError("not here")

    lines: list[str] = []
    every: list[checks.Check] = [
        ("a", failing),
        ("b", lambda: str(1 / 0)),
        ("c", skipping),
        ("d", Path("/no/such").read_text),
        ("e", lambda: "well"),
    ]
    assert checks.examine(every, lines.append) == ["a", "b", "d"]
    assert lines[0] == "FAILED  a: one two"
    assert lines[1].startswith("FAILED  b: ZeroDivisionError: division by zero; ")
    assert lines[2:] == [
        "skipped c: not here",
        "FAILED  d: [Errno 2] No such file or directory: '/no/such'; make room or give permission there, then run it again",
        "ok      e: well",
    ]


def test_any_failure_is_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("metalearn.doctor.plans", list)
    monkeypatch.setattr("metalearn.doctor.second_order", lambda: str(1 / 0))
    assert cli.main(["doctor"]) == 1
    assert "FAILED  second order: ZeroDivisionError" in capsys.readouterr().out


def params_of(executor: Executor) -> dict[str, Any]:
    return dict(executor.algorithm.named_parameters())


def spoil(monkeypatch: pytest.MonkeyPatch, which: Callable[[Executor], list[str]]) -> None:
    """Make NaN of the gradients of the parameters that `which` names."""
    right = Executor.sums

    def wrong(executor: Executor, batch: Any) -> Sums:
        sums = right(executor, batch)
        return sums._replace(grads={**sums.grads, **{name: sums.grads[name] * torch.nan for name in which(executor)}})

    monkeypatch.setattr(Executor, "sums", wrong)


class TestGradients:
    @pytest.mark.parametrize(
        ("first_order", "sentence"), [(True, "algo.order=2 is .* off finite"), (False, "takes second derivatives too")]
    )
    def test_a_wrong_order_is_noticed(self, monkeypatch: pytest.MonkeyPatch, first_order: bool, sentence: str) -> None:
        wrong = lambda *args, **kwargs: gradient_descent(*args, **{**kwargs, "first_order": first_order})  # noqa: E731
        monkeypatch.setattr("metalearn.algorithms.maml.gradient_descent", wrong)
        with pytest.raises(FailedError, match=sentence):
            gradients.second_order()

    @pytest.mark.parametrize("order", [1, 2])
    def test_second_order_that_is_not_finite_is_noticed(self, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
        spoil(monkeypatch, lambda executor: list(params_of(executor)) if executor.algorithm.order == order else [])
        with pytest.raises(FailedError, match="off finite differences .*algo.order=1"):
            gradients.second_order()

    @pytest.mark.parametrize(("plans", "spoiled"), [(("loop", "vmap"), slice(None)), (("vmap",), slice(-1, None))])
    def test_a_gradient_that_is_not_finite_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch, plans: tuple[str, ...], spoiled: slice
    ) -> None:
        """Of every parameter under every plan, or of the last one under vmap alone."""
        spoil(monkeypatch, lambda executor: list(params_of(executor))[spoiled] if executor.plan.name in plans else [])
        with pytest.raises(FailedError, match="gradient of .* is inf off under vmap"):
            gradients.same_plans("maml")

    @pytest.mark.parametrize("algo", ["maml", "reptile", "pixel_nn"])
    def test_a_wrong_plan_is_noticed(self, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
        right = TaskPlan.map

        def wrong(plan: TaskPlan, function: Callable[..., Any], *batches: Any) -> Any:
            result = right(plan, function, *batches)
            off = torch.utils._pytree.tree_map(lambda leaf: leaf * (1 + 1e-7) if leaf.is_floating_point() else leaf, result)
            return off if plan == TaskPlan("vmap", 2) else result

        monkeypatch.setattr(TaskPlan, "map", wrong)
        with pytest.raises(FailedError, match=r"is [\d.]+e-0\d off under vmap chunk 2, relative to loop .*; use device.plan=loop"):
            gradients.same_plans(algo)

    def test_a_compiler_that_is_wrong_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(function: Callable[..., Any], **dials: Any) -> Callable[..., Any]:
            return lambda *args: torch.utils._pytree.tree_map(lambda leaf: leaf * 1.0001, function(*args))

        monkeypatch.setattr(torch, "compile", wrong)
        with pytest.raises(FailedError, match="off under vmap compiled, relative to loop .*; use device.compile=false"):
            gradients.compiled()

    def test_without_a_compiler_its_check_is_skipped_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gradients.shutil, "which", lambda name: None)
        with pytest.raises(SkippedError, match=r"there is no C\+\+ compiler"):
            gradients.compiled()


class TestMachine:
    def test_versions_that_were_not_asked_for_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = machine.wanted_versions()
        assert wanted["torch"] == ">=2.10" and wanted["python"] and set(wanted["hydra-core"].split(",")) == {">=1.3.8", "<1.5"}
        monkeypatch.setattr(machine, "wanted_versions", lambda: {**wanted, "torch": ">=99.1", "hydra-core": ">=1,<1.3"})
        with pytest.raises(FailedError, match=r"torch .* is not >=99.1, hydra-core .* is not >=1,<1.3; repair it with: pip install"):
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

    def test_a_gpu_that_pytorch_does_not_find_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(machine, "GPU", tmp_path)
        with pytest.raises(FailedError, match="finds no CUDA device; compare with nvidia-smi"):
            machine.device()

    def test_more_threads_than_cores_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "default_threads", lambda: 8)
        monkeypatch.setattr(build, "num_cores", lambda: 2)
        assert machine.threads().startswith("8 of 2 cores; set device.threads=2")

    def test_an_allocator_that_maps_anew_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        try:
            machine.allocator()
        except SkippedError as reason:
            pytest.skip(str(reason))

        def forgetful(cfg: Any) -> None:
            libc = ctypes.CDLL(None)
            libc.mallopt(build.M_MMAP_MAX, 65536)
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 17)

        with monkeypatch.context() as patch:
            patch.setattr(build, "prepare_host", forgetful)
            patch.setattr(machine, "BLOCK", 1 << 30)  # more than earlier tests have left free
            with pytest.raises(FailedError, match="maps large temporaries anew"):
                machine.allocator()
        assert "keeps" in machine.allocator()


class TestStorage:
    def test_a_flipped_bit_that_is_not_noticed_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read = lambda path, names: {name: (path / name).read_bytes() for name in names}  # noqa: E731
        assert "a flipped bit is refused" in storage.bit_flip()
        monkeypatch.setattr(checkpoint, "verified", read)
        with pytest.raises(FailedError, match="a checkpoint with a flipped bit is loaded as if it were whole"):
            storage.bit_flip()

    def test_a_damaged_archive_is_noticed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "omniglot").mkdir()
        (tmp_path / "omniglot" / "images_background.zip").write_bytes(b"no archive")
        monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
        with pytest.raises(DataError, match=r"images_background\.zip is damaged or incomplete"):
            storage.audit("omniglot")

    def test_one_part_of_omniglot_without_the_other_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {"images_background": Path("images_background.zip"), "images_evaluation": None}
        monkeypatch.setattr(storage, "verify", lambda places: found)
        with pytest.raises(FailedError, match=r"images_evaluation is not here, .*\(looked in .*\); fetch it with: metalearn data prepare"):
            storage.audit("omniglot")

    def test_data_that_is_not_here_is_no_failure(self) -> None:
        with pytest.raises(SkippedError, match=r"not here \(looked in .*\); fetch it with: metalearn data prepare omniglot"):
            storage.audit("omniglot")
        with pytest.raises(SkippedError, match="your own files"):
            storage.audit("image_folder")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has finished."""
    run_dir = tmp_path_factory.mktemp("template") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.run.life.draw_plots", lambda *parts: None)
        assert cli.main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def run_dir(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """The exit code of doctor and what it said."""
    capsys.readouterr()
    code = cli.main(["doctor", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


class TestRunFolder:
    def test_a_sound_run_passes_and_is_only_read(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in run_dir.rglob("*")}
        code, said = answer(capsys, run_dir)
        assert code == 0
        for line in ("config.yaml", "step-000004", "step-000002", "checkpoints/last", "checkpoints/best", "method", "metrics.jsonl"):
            assert f"ok      {line}: " in said
        assert "ok      results.json: test mse " in said
        assert before == {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in run_dir.rglob("*")}

    def test_one_bad_checkpoint_is_exit_1_and_named(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flip(run_dir / "checkpoints" / "step-000004" / TENSORS)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  step-000004: " in said
        assert "does not have the sha256 that was written; resume falls back to step-000002 if that is valid" in said
        assert "ok      step-000002: " in said
        for name, wanted in (
            ("last", "step-000002 is the newest valid checkpoint"),
            ("best", "step-000002 recorded step-000002 as the best"),
        ):
            assert f"FAILED  checkpoints/{name}: it names step-000004, which is not valid, but {wanted}; set it with: echo " in said
        assert said.count("FAILED") == 3

    @pytest.mark.parametrize("fault", ["all bad", "none"])
    def test_no_valid_checkpoint_is_exit_4(self, run_dir: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
        store = CheckpointStore(run_dir)
        for step in store.steps():
            flip(store.path(step) / TENSORS) if fault == "all bad" else shutil.rmtree(store.path(step))
        code, said = answer(capsys, run_dir)
        assert code == 4
        named = (
            "FAILED  step-000002: " if fault == "all bad" else f"FAILED  checkpoints: there is none yet; metalearn resume {run_dir} begins"
        )
        assert named in said
        assert "skipped method: no valid checkpoint says" in said

    def test_a_configuration_that_may_not_run_is_named(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        change(run_dir, "algo", "_target_", "os.system")
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  config.yaml: algo._target_=os.system" in said

    def test_a_configuration_changed_by_hand_is_named(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        change(run_dir, "algo", "inner_lr", 0.125)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  method: a resumed run must keep its method and data, but: algo.inner_lr: " in said

    def test_a_run_that_is_older_than_a_key_is_sound(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
        del cfg["device"]["deterministic"]
        (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "is older than device.deterministic" in said

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("metrics.jsonl", "", "FAILED  metrics.jsonl: .* has 0 bytes, the checkpoint knows"),
            ("metrics.jsonl", "rubbish\n", r"FAILED  metrics.jsonl: .*, line 1 is no measurement"),
            ("results.json", "[]", "FAILED  results.json: .* is not the result of a run"),
            ("results.json", None, "FAILED  results.json: absent, though the run is finished; judge it again with: metalearn eval"),
            ("checkpoints/best", "step-000003\n", "FAILED  checkpoints/best: it names step-000003, which is gone, but"),
            ("checkpoints/last", "rubbish", "FAILED  checkpoints/last: it names no checkpoint, but step-000004 is the newest valid"),
        ],
    )
    def test_a_damaged_file_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, sentence: str
    ) -> None:
        (run_dir / name).unlink() if content is None else (run_dir / name).write_text(content)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert re.search(sentence, said), said

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize("fault", ["gone", "wrong"])
    @pytest.mark.parametrize("name", ["last", "best"])
    def test_a_pointer_that_is_gone_or_wrong_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], name: str, fault: str, finished: bool
    ) -> None:
        store = CheckpointStore(run_dir)
        newest, path = store.path(store.newest().step).name, store.folder / name
        right = path.read_text().strip()
        wrong = next(store.path(step).name for step in store.steps() if store.path(step).name != right)
        path.unlink() if fault == "gone" else path.write_text(f"{wrong}\n")
        (run_dir / "status.json").write_text(json.dumps({"status": "finished" if finished else "preempted"}))
        code, said = answer(capsys, run_dir)
        found = "it is gone" if fault == "gone" else f"it names {wrong}"
        wanted = f"{newest} is the newest valid checkpoint" if name == "last" else f"{newest} recorded {right} as the best"
        remedy = f"set it with: echo {right} > {path}" if finished else f"metalearn resume {run_dir} sets it anew"
        assert code == 1
        assert f"FAILED  checkpoints/{name}: {found}, but {wanted}; {remedy}\n" in said

    def test_the_pointers_of_a_run_that_goes_on_may_move(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run_dir / "checkpoints" / "last").write_text("step-000002\n")
        (run_dir / "status.json").write_text(json.dumps({"status": "running"}))
        with (run_dir / ".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            code, said = answer(capsys, run_dir)
        assert code == 0
        assert "skipped checkpoints/last: the run goes on" in said

    def test_a_best_checkpoint_that_is_lost_may_have_another_in_its_place(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        store = CheckpointStore(run_dir)
        newest = store.load(4)
        store.save(4, newest.tensors, newest.facts, ranked=[2])
        shutil.rmtree(store.path(2))
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  checkpoints/best: it names step-000002, which is gone, but step-000004 recorded step-000002 as the best; " in said
        assert f"restore step-000002 from a backup, or choose another with: metalearn eval {run_dir} eval.checkpoint=last" in said
        store.point("best", 4)  # as a resume does
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "ok      checkpoints/best: step-000004, in place of step-000002, which is lost" in said

    def test_another_machine_is_named_but_is_no_failure(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        facts = json.loads((run_dir / "env.json").read_text())
        facts["versions"]["torch"] = "1.0"
        (run_dir / "env.json").write_text(json.dumps(facts))
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "ok      env.json: bits may differ when it is resumed here: torch was 1.0, is " in said

    def test_classes_of_ones_own_need_the_word_again(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        change(run_dir, "data", "_target_", "mine.Source")
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "'trusted=[mine]'" in said
        assert "ok      config.yaml: " in answer(capsys, run_dir, "trusted=[mine]")[1]

    def test_a_folder_that_is_no_run_is_exit_2(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, said = answer(capsys, tmp_path)
        assert code == 2
        assert said.startswith(f"error: {tmp_path} is not a run: it holds no config.yaml")
        assert answer(capsys, "trusted=[mine]") == (
            2,
            "error: trusted=[mine] is no folder; the folder of a run comes first: RUN_DIR trusted=[mine]\n",
        )

    def test_runs_are_completed(self, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "outputs").mkdir()
        shutil.move(run_dir, tmp_path / "outputs" / "one")
        monkeypatch.chdir(tmp_path)
        line = "metalearn doctor out"
        assert completion.complete(line, len(line), tuple(cli.VERBS)) == ["outputs/one"]


def change(run_dir: Path, group: str, key: str, value: Any) -> None:
    cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
    cfg[group][key] = value
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
