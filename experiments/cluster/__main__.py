"""One run on many machines, as `bash launch.sh cluster` starts it."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.cluster.scripts import SLURM, Run, write_hosts, write_slurm, write_tpu

CLONE = Path(__file__).resolve().parents[2]

EXPLAINED = """\
Each process takes its share of the work from DIR, which all machines must see under the same path,
as they must the folder of the project with its environment. What they print is in DIR-cluster.
Flags of the experiments, --config.field=value among them, are passed on to every process."""


def main(argv: list[str]) -> int:
    """Write the scripts and start what can be started from here; the exit status."""
    parser = _parser()
    asked, flags = parser.parse_known_args(argv)
    known = ("--config.", "--compilation_cache", "--tensorboard", "--notensorboard", "--traceback")
    for flag in flags:
        if not flag.startswith(known):
            parser.error(f"{flag} is no option of the cluster's, and no --config.field=value")
    given = {name: own for name in SLURM if (own := getattr(asked, name.replace("-", "_")))}
    others = [name for name in ("hosts", "tpu") if getattr(asked, name)]
    if (given and others) or len(others) > 1:
        parser.error(f"one of SLURM's options, --tpu and --hosts is needed, not {others} as well")
    if not (CLONE / asked.config.split(":")[0]).is_file():
        parser.error(f"{asked.config}: there is no such configuration in {CLONE}")
    run = Run(CLONE, asked.config, (CLONE / asked.workdir).absolute(), flags)
    try:
        if asked.hosts:
            return _on_hosts(run, asked.hosts.split(","), start=asked.start)
        if asked.tpu:
            return _on_tpu(run, asked.chips)
        return _by_slurm(run, {"ntasks": "4", **given}, start=asked.start)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash launch.sh cluster",
        description="One run on many machines: a job of SLURM unless --tpu or --hosts is given.",
        epilog=EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="such as configs/digits.py")
    parser.add_argument("workdir", metavar="DIR", help="work directory, on a shared file system")
    parser.add_argument("--hosts", metavar="A,B,C", help="a process on each, by ssh")
    parser.add_argument("--tpu", action="store_true", help="a process on each worker of a TPU pod")
    chips = "how the chips of one worker lie"
    parser.add_argument("--chips", default="2,2,1", help=f"with --tpu, {chips}: %(default)s")
    told = "write the scripts, start nothing"
    parser.add_argument("--no-start", dest="start", action="store_false", help=told)
    slurm = parser.add_argument_group("options of sbatch")
    for name in SLURM:
        number = "processes: 4 unless given" if name == "ntasks" else None
        slurm.add_argument(f"--{name}", metavar="X", help=number)
    return parser


def _by_slurm(run: Run, options: dict[str, str], *, start: bool) -> int:
    path = write_slurm(run, options)
    print(f"the job: {path}")
    if start and shutil.which("sbatch"):
        return subprocess.run(["sbatch", str(path)], check=False).returncode
    why = "there is no sbatch here; " if start else ""
    print(f"{why}where there is one, submit it by: sbatch {shlex.quote(str(path))}")
    return 0


def _on_tpu(run: Run, chips: str) -> int:
    path = write_tpu(run, chips)
    print(f"run on every worker of the pod, all of which must see {run.workdir}:")
    command = f"bash {shlex.quote(str(path))}"
    print(f"    {command}        # where TPU_WORKER_ID and TPU_WORKER_HOSTNAMES are set")
    print(f"    {command} K/N    # else: on worker K, from 0, of N")
    return 0


def _on_hosts(run: Run, hosts: list[str], *, start: bool) -> int:
    path = write_hosts(run, hosts)
    print(f"all hosts must see {run.clone} and {run.workdir}, under these names")
    if not start:
        print(f"start it by: bash {shlex.quote(str(path))}")
        return 0
    sys.stdout.flush()
    # In place of this process, so that signals reach it.
    os.execvp("bash", ["bash", str(path)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
