"""The scripts that start one run on many machines, made from the templates beside this module."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What of a job of SLURM can be said, under the names that sbatch has for it.
SLURM = (
    "ntasks",
    "nodes",
    "cpus-per-task",
    "gpus-per-task",
    "mem",
    "mem-per-cpu",
    "time",
    "partition",
    "account",
    "qos",
    "constraint",
)

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """What every process of a run is started with.

    Arguments:
        clone: the folder of the project, with its environment `.venv`.
        config: a configuration, as the command line takes it.
        workdir: the work directory that all processes share.
        flags: further ones of `experiments.main`.
    """

    clone: Path
    config: str
    workdir: Path
    flags: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where its scripts are, and what its processes print: beside the work directory."""
        return self.workdir.with_name(f"{self.workdir.name}-cluster")


def write_worker(run: Run) -> Path:
    """Write the script that is one process of a run, which all others start; its path."""
    flags = [f"--config={run.config}", f"--workdir={run.workdir}", *run.flags]
    told = "".join(f"    {shlex.quote(flag)} \\\n" for flag in flags)
    return _write(run, "worker.sh", {"clone": shlex.quote(str(run.clone)), "flags": told})


def write_slurm(run: Run, options: Mapping[str, str]) -> Path:
    """Write a job of SLURM with a process in each of its tasks; its path.

    Arguments:
        options: of sbatch, among `SLURM`, "ntasks" with them.

    Raises ValueError for an option that would be no line of a script.
    """
    lines = {"job-name": run.workdir.name, **options}
    log = run.folder / "job-%j.log"
    lines |= {"output": str(log), "open-mode": "append"}
    for name, value in options.items():
        if not re.fullmatch(r"[^\s\"'\\]+", value):
            raise ValueError(f"--{name}={value}: one word is needed")
    if re.search(r"[\"\\%\n]", str(run.folder)):
        raise ValueError(f"{run.folder}: SLURM takes no path with a quotation mark, \\ or %")
    worker = write_worker(run)
    directives = [f"#SBATCH --{name}={_quoted(value)}" for name, value in lines.items()]
    # A job that is moved out of the way starts again, and goes on.
    directives.append("#SBATCH --requeue")
    values = {
        "directives": "\n".join(directives),
        "log": shlex.quote(str(run.folder / "job-%j-task-%t.log")),
        "worker": shlex.quote(str(worker)),
    }
    return _write(run, "job.sbatch", values)


def write_tpu(run: Run, chips: str) -> Path:
    """Write what each worker of a TPU pod runs; its path.

    Arguments:
        chips: how the chips of one worker lie, such as "2,2,1".

    Raises ValueError for `chips` of another form.
    """
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", chips):
        raise ValueError(f"--chips={chips}: three numbers are needed, such as 2,2,1")
    worker = write_worker(run)
    return _write(run, "tpu.sh", {"worker": shlex.quote(str(worker)), "chips": chips})


def write_hosts(run: Run, hosts: Sequence[str]) -> Path:
    """Write what starts a process on each of some hosts by ssh; its path.

    Raises ValueError for none, one that is there twice, and what is no name of a host.
    """
    for host in hosts:
        # What starts with a dash would be an option of ssh.
        if not re.fullmatch(r"[\w@][\w.@:-]*", host):
            raise ValueError(f"--hosts: {host!r} is no host; write --hosts=a,b,c")
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if not hosts or twice:
        raise ValueError(f"--hosts: {', '.join(twice) + ' twice' if twice else 'no host is named'}")
    write_worker(run)
    values = {"hosts": " ".join(map(shlex.quote, hosts)), "folder": shlex.quote(str(run.folder))}
    return _write(run, "hosts.sh", values)


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.,:/%+-]+", value) else f'"{value}"'


def _write(run: Run, name: str, values: Mapping[str, str]) -> Path:
    template = (_HERE / name).read_text(encoding="utf-8")
    text = re.sub(r"@\{(\w+)\}", lambda found: values[found[1]], template)
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path
