"""launch.sh and what it writes for clusters, run for real: all but the network and the experiment.

In place of these stand programs of a few lines: `ssh`, `sbatch` and `srun`, which start on this
machine what they are asked to start on others, and an experiment that notes how it was started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

from experiments.cluster.scripts import Run, write_hosts, write_slurm, write_tpu

ROOT = Path(__file__).parents[2]

EXPERIMENT = """
import json, os, pathlib, sys, time
(where,) = [flag.removeprefix("--workdir=") for flag in sys.argv if flag.startswith("--workdir=")]
told = {name: os.environ.get(name) for name in ("SLURM_PROCID", "TPU_WORKER_ID")}
place = pathlib.Path(where)
place.mkdir(parents=True, exist_ok=True)
(place / f"{os.getpid()}.json").write_text(json.dumps([sys.argv[1:], told, os.getcwd()]))
if "--config.stays=True" in sys.argv:
    time.sleep(60)
print("done")
sys.exit(3 if "--process=1/2" in sys.argv and "--config.fails=True" in sys.argv else 0)
"""
SSH = """#!/usr/bin/env bash
# ssh -o OPTION HOST COMMAND
echo "$3" >>"$HOSTS_SEEN"
exec sh -c "$4"
"""
SBATCH = """#!/usr/bin/env bash
grep '^#SBATCH' "$1" >"$DIRECTIVES"
echo "Submitted batch job 1"
SLURM_CPUS_PER_TASK=2 exec bash "$1"
"""
SRUN = """#!/usr/bin/env bash
while [ "${1#--}" != "$1" ]; do shift; done
status=0
for k in 0 1 2; do SLURM_PROCID=$k SLURM_NTASKS=3 "$@" || status=$?; done
exit $status
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What launch.sh needs of the project, in a folder with a space, its environment there."""
    clone = tmp_path_factory.mktemp("home of") / "a clone's folder"
    own = clone / "experiments"
    shutil.copytree(ROOT / "experiments" / "cluster", own / "cluster")
    shutil.copy(ROOT / "experiments" / "installed.py", own)
    (own / "__init__.py").write_text("")
    (own / "main.py").write_text(EXPERIMENT)
    (clone / "configs").mkdir()
    (clone / "configs" / "digits.py").write_text("")
    for name in ("launch.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    venv.create(clone / ".venv", symlinks=True)
    (packages,) = (clone / ".venv").glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, text in {"ssh": SSH, "sbatch": SBATCH, "srun": SRUN}.items():
        place = clone / name / name
        place.parent.mkdir()
        place.write_text(text)
        place.chmod(0o755)
    return clone


@pytest.fixture
def launched(clone, tmp_path):
    """Starts launch.sh in some other folder; `on_path` names the programs that stand for others."""

    def launch(*arguments, on_path=(), **environment):
        folders = [clone / name for name in on_path]
        path = os.pathsep.join(
            map(str, [*folders, Path(sys.executable).parent, "/usr/bin", "/bin"])
        )
        seen = {"HOSTS_SEEN": tmp_path / "hosts", "DIRECTIVES": tmp_path / "directives"}
        return subprocess.Popen(
            ["bash", clone / "launch.sh", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, **seen, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(*arguments, **options):
        process = launch(*arguments, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    ended.started = launch
    return ended


def started(workdir):
    """How each process was started, in order of its flags and number."""
    return sorted((json.loads(p.read_text()) for p in workdir.glob("*.json")), key=json.dumps)


def test_nothing_is_installed_where_nothing_is_missing(clone, launched, tmp_path):
    workdir = tmp_path / "its runs"
    flags = ["--config.data.folder=my data", "--config.seed=1"]
    found = launched("configs/digits.py", workdir, *flags, PIP_NO_INDEX="1")
    assert found == (0, "done\n", "")
    ((told, _, folder),) = started(workdir)
    assert told == ["--config=configs/digits.py", f"--workdir={workdir}", *flags]
    assert folder == str(clone)


def test_an_installation_that_fails(clone, launched, tmp_path):
    pytest.importorskip("pip")
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "/no/wheels"}
    status, out, err = launched("configs/digits.py", tmp_path, EXTRAS="cuda", **offline)
    assert status != 0
    assert out.startswith("setting up .venv with experiments,cuda: 50 to 110 packages")
    # What pip says of what is wrong, not of what is in its way, then what that means.
    assert "ERROR: No matching distribution found for setuptools" in err
    assert "WARNING" not in err
    assert "error: .venv could not be set up" in err
    assert not (clone / ".venv" / ".installed-experiments,cuda").exists()
    assert not list(tmp_path.glob("*.json"))


def test_a_job_of_slurm(launched, tmp_path):
    workdir = tmp_path / "its runs"
    arguments = ["cluster", "configs/digits.py", workdir, "--ntasks=3", "--time=2-00:00:00"]
    flag = "--config.published='a b'"
    status, out, err = launched(*arguments, flag, on_path=("sbatch", "srun"))
    assert (status, err) == (0, "")
    script = tmp_path / "its runs-cluster" / "job.sbatch"
    assert out.splitlines()[:2] == [f"the job: {script}", "Submitted batch job 1"]
    assert (tmp_path / "directives").read_text().splitlines() == [
        '#SBATCH --job-name="its runs"',
        "#SBATCH --ntasks=3",
        "#SBATCH --time=2-00:00:00",
        f'#SBATCH --output="{workdir}-cluster/job-%j.log"',
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
    ]
    found = started(workdir)
    assert [told["SLURM_PROCID"] for _, told, _ in found] == ["0", "1", "2"]
    for told, _, _ in found:
        assert told == ["--config=configs/digits.py", f"--workdir={workdir}", flag]


def test_a_job_where_there_is_no_sbatch(launched, tmp_path):
    status, out, _ = launched("cluster", "configs/digits.py", tmp_path / "runs")
    assert status == 0
    assert f"submit it by: sbatch {tmp_path}/runs-cluster/job.sbatch" in out
    assert not started(tmp_path / "runs")
    assert "#SBATCH --ntasks=4" in (tmp_path / "runs-cluster" / "job.sbatch").read_text()


def test_hosts(launched, tmp_path):
    workdir = tmp_path / "its runs"
    arguments = ["cluster", "configs/digits.py", workdir, "--hosts=one,me@two"]
    status, out, err = launched(*arguments, "--config.fails=True", on_path=("ssh",))
    assert sorted((tmp_path / "hosts").read_text().split()) == ["me@two", "one"]
    flags = ["--config=configs/digits.py", f"--workdir={workdir}", "--config.fails=True"]
    found = [told for told, _, _ in started(workdir)]
    assert found == [[*flags, f"--process={number}/2"] for number in (0, 1)]
    assert "all hosts must see" in out
    scripts = tmp_path / "its runs-cluster"
    log = scripts / "1-me@two.log"
    assert f"process 1 of 2 on me@two: {log}" in out
    assert (status, err) == (1, f"process 1 on me@two ended with status 3: {log}\n")
    assert log.read_text() == (scripts / "0-one.log").read_text() == "done\n"


def test_hosts_end_with_what_started_them(launched, tmp_path):
    workdir = tmp_path / "runs"
    arguments = ["cluster", "configs/digits.py", workdir, "--hosts=one,two"]
    process = launched.started(*arguments, "--config.stays=True", on_path=("ssh",))
    deadline = time.monotonic() + 60
    while len(running := [int(p.stem) for p in workdir.glob("*.json")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ending the processes on one two" in err
    for pid in running:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_of_a_tpu_pod(launched, tmp_path):
    status, out, _ = launched(
        "cluster", "configs/digits.py", tmp_path / "runs", "--tpu", "--chips=2,4,1"
    )
    script = tmp_path / "runs-cluster" / "tpu.sh"
    assert status == 0
    assert f"bash {script} K/N" in out
    pod = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2,10.0.0.3"}
    subprocess.run(["bash", script], env={**os.environ, **pod}, check=True, timeout=60)
    subprocess.run(["bash", script, "2/3"], check=True, timeout=60)
    found = started(tmp_path / "runs")
    assert [told[-1] for told, _, _ in found] == ["--process=1/3", "--process=2/3"]
    # Else it would wait for the other workers.
    assert [told["TPU_WORKER_ID"] for _, told, _ in found] == [None, None]
    assert "export CLOUD_TPU_TASK_ID=0 TPU_PROCESS_BOUNDS=1,1,1" in script.read_text()
    assert "TPU_CHIPS_PER_PROCESS_BOUNDS=2,4,1" in script.read_text()
    alone = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert alone.returncode == 2
    assert "TPU_WORKER_ID and TPU_WORKER_HOSTNAMES are not set" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["configs/digits.py"], "required: DIR"),
        (["configs/digit.py", "runs"], "configs/digit.py: there is no such configuration"),
        (["configs/digits.py", "runs", "--host=a"], "--host=a is no option of the cluster's"),
        (["configs/digits.py", "runs", "--hosts=a,b,a"], "--hosts: a twice"),
        (["configs/digits.py", "runs", "--hosts=a,-oProxyCommand=x"], "is no host"),
        (["configs/digits.py", "runs", "--hosts=a", "--ntasks=2"], "one of SLURM's options"),
        (["configs/digits.py", "runs", "--tpu", "--chips=4"], "--chips=4: three numbers"),
        (["configs/digits.py", "runs", "--time=1 day"], "--time=1 day: one word is needed"),
    ],
)
def test_what_is_refused(clone, arguments, expected):
    command = [sys.executable, "-m", "experiments.cluster", *arguments]
    found = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert expected in found.stderr
    assert not list(clone.glob("runs*"))


def test_all_scripts_are_bash(tmp_path):
    run = Run(
        Path("/a 'clone'"),
        "configs/a b.py:smoke",
        tmp_path / "it's $HOME `ls`",
        ["--config.x=$y 'z'"],
    )
    written = [
        write_slurm(run, {"ntasks": "2"}),
        write_tpu(run, "2,2,1"),
        write_hosts(run, ["a", "me@b"]),
        run.folder / "worker.sh",
        ROOT / "launch.sh",
    ]
    for path in written:
        assert "@{" not in path.read_text()
        subprocess.run(["bash", "-n", path], check=True, timeout=60)
